"""Studies, runs, examples and templates of batch scripts: files that are shipped with megatron_kis, and no library."""
