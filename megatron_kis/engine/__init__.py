"""One training step and one scoring pass of Megatron-Core: engine, optimizer, learning rate."""
