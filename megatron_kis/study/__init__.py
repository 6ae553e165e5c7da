"""A study: its runs (``grid``), data (``data``, ``holders``), files (``manifest``, ``conflicts``), ``status`` and more.

``proposals`` adds what the analysis proposes, ``forecast`` predicts the time left, ``submission`` makes SLURM jobs, and
``lock`` keeps two ``kis study run`` apart. The runs are executed by ``executor``, which knows nothing of studies.
"""
