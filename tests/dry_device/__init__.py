"""A rank of a CUDA job without a GPU: see README.md."""
