"""A study: configuration (``config``), runs (``grid``, ``plan``), execution (``executor``), ``status``."""
