"""Training: one run (``run``), the engine over Megatron-Core (``engine``), optimizer, schedule, hooks and logs."""
