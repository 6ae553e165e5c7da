"""One training step and one scoring pass of Megatron-Core: engine, replicas, optimizer, learning rate."""
