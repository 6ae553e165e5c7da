"""Runs as jobs of a SLURM cluster.

Division into jobs (``jobs``), scripts (``scripts``), records of what was submitted (``records``), the queue (``queue``,
over ``client``), and what happens on the nodes (``node``, ``launch``).
"""
