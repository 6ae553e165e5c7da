"""The settings of a run, of a study and of its cluster, one section per file, and arithmetic on them."""
