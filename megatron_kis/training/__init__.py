"""One run, from its configuration to ``DONE``: the trainer, its inputs, its folder, resuming, branches, faults."""
