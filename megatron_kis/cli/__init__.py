"""One module per command: the only place that joins data_tools, megatron_kis and analysis."""
