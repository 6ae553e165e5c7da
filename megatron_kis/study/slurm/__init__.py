"""A study on a SLURM cluster: settings (``config``), division into jobs (``jobs``), scripts (``scripts``), submission
(``submission``), the queue (``queue``, over ``client``), and what runs on the nodes (``node``, ``launch``)."""
