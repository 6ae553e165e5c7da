"""The table of layouts that ``kis plan`` prints, with the parts of their memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_kis.planning.layouts import PlannedLayout

_HEADER = (
    f"  {'layout':18}{'recompute':>10}{'batch':>6}{'weights':>8}{'grads':>6}{'optim.':>7}{'at the peak':>16}{'GB':>6}"
    f"{'s/step':>8}{'MFU':>5}  {'limit':11}GPU time"
)


def table(found: Sequence[PlannedLayout]) -> Iterator[str]:
    """Yields one line per layout, in their order, and lines about the first one's memory."""
    yield _HEADER
    for option in found:
        memory = option.memory
        peak = f"{memory.parts[memory.peak] / 1e9:.1f} {memory.peak}"
        yield (
            f"  {option.split.label:18}{option.split.recompute:>10}{option.micro_batch:>6}{memory.weights / 1e9:>8.1f}"
            f"{memory.gradients / 1e9:>6.1f}{memory.optimizer / 1e9:>7.1f}{peak:>16}{memory.total / 1e9:>6.1f}"
            f"{option.step_seconds:>8.2g}{option.mfu:>5.0%}  {option.seconds.limit:11}{gpu_time(option.gpu_hours)}"
        )
    memory, split = found[0].memory, found[0].split
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in memory.parts.items())
    yield (
        f"  {split.label}, stage {memory.stage + 1} of {split.pipeline}, layers of {_LAYERS[memory.layers]}: "
        f"GB of CUDA and NCCL {memory.context / 1e9:.1f} (assumed); added by"
    )
    yield f"    {parts}; on the host, while saving, up to {memory.host / 1e9:.1f}"


_LAYERS = {"sdpa": "sdpa", "transformer_engine": "Transformer Engine"}


def gpu_time(hours: float) -> str:
    """Returns device time in the largest unit that it fills: ``"2,310 GPU-hours"``, ``"4.2 GPU-minutes"``."""
    for unit, size in (("hours", 1.0), ("minutes", 1 / 60), ("seconds", 1 / 3600)):
        value = hours / size
        if value >= 1:
            return f"{value:,.0f} GPU-{unit}" if value >= 100 else f"{value:.3g} GPU-{unit}"
    return "less than a GPU-second"
