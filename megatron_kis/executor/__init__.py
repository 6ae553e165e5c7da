"""Runs executed side by side: leases, attempts, GPUs and cores, processes, SLURM. Knows runs and no facts."""
