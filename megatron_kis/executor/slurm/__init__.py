"""A study on a SLURM cluster.

Settings (``config``), division into jobs (``jobs``), scripts (``scripts``, ``container``), submission (``submission``,
``records``), the queue (``queue``, over ``client``), and what runs on the nodes (``node``, ``launch``).
"""
