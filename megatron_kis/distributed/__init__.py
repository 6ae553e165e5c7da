"""Devices and process groups: Megatron-Core over NCCL on CUDA and over gloo on the CPU."""
