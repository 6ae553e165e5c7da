"""A study: its runs (``grid``), data (``data``, ``holders``), files (``manifest``, ``conflicts``), ``status`` and more.

``proposals`` adds what the analysis proposes, ``forecast`` predicts the time left, ``submission`` makes SLURM jobs, and
``lock`` prevents two ``kis study run`` at a time. The runs are executed by ``executor``, which knows nothing of
studies.
"""
