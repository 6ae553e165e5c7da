"""A real SLURM of a few virtual nodes on this machine, and studies that are submitted to it."""
