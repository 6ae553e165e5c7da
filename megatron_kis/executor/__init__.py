"""Runs executed side by side, here or on a cluster, whatever they train on: it knows no facts, grids or studies.

- It takes runs (``interface.Run``: name, folder, ranks, device, settings), a launcher that names each run's command,
  and the settings of ``executor`` (``config.executor``). Of the package it imports ``common`` and ``config`` alone.
- It promises that a run has one owner at a time, on all machines that share the folder (``lease``); that a failed run
  is tried again ``retries`` times and stops no other (``attempts``); that a run has GPUs and cores of its own
  (``resources``); that runs are asked to save when the executor is asked to stop, and that none outlives it.
- It writes into each run's folder ``claims/``, ``attempts.jsonl``, ``config.yaml`` and ``log.txt``, and nothing else.
  What ends an attempt is the command's exit status, ``DONE`` in the folder, and the status file that ``kis train``
  leaves (``common.ending``).

``slurm`` does the same with the jobs of a cluster.
"""
