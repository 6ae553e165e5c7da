"""FP8's scales with Transformer Engine's real states: which passes quantize, and scales through a checkpoint."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.dry_device import cuda, kernels, rank, transformer_engine, world
from tests.dry_device.counts import Counts, read_from_the_host

import torch  # isort: skip


def counts() -> dict[str, int]:
    """Tensors that each part of a run turns to FP8, on the dry device."""
    number = dict.fromkeys(("step", "validation", "probe"), 0)
    quantize, part = transformer_engine.quantize, "step"

    def counted(*arguments: Any, **named: Any) -> Any:
        number[part] += 1
        return quantize(*arguments, **named)

    asked = rank.arguments(["70m", "--layers=2", "--length=64", "--precision=fp8"])
    seen = Counts()
    world.open_world(0, 1, seen.say)
    mode = cuda.install(seen.sync)
    transformer_engine.load()
    transformer_engine.quantize = sys.modules["transformer_engine_torch"].quantize = counted  # type: ignore[attr-defined]
    kernels.install()
    read_from_the_host(seen)
    with mode, seen:
        run = rank.Rank(asked, seen)
        for part in number:
            getattr(run, part)()
    return number


def kept() -> dict[str, Any]:
    """Scales with numbers, on the host: saved, and loaded into another model's."""
    transformer_engine.load()
    import transformer_engine.pytorch.quantization as states

    cuda_side: Any = torch.cuda
    cuda_side.is_available, cuda_side.synchronize = lambda: True, lambda *_: None
    cuda_side.get_device_capability = lambda *_: (9, 0)
    cuda_side.get_device_properties = lambda *_: SimpleNamespace(major=9, minor=0)
    made = states.DelayedScalingRecipeState.__init__
    states.DelayedScalingRecipeState.__init__ = lambda self, *arguments, **named: made(
        self, *arguments, **{**named, "device": torch.device("cpu")}
    )
    from megatron_kis.checkpoint import shards
    from megatron_kis.config.ladder import ModelShape
    from megatron_kis.distributed.device import open_device
    from megatron_kis.engine.scaling import DelayedScaling
    from megatron_kis.model.build import ModelSpec, assemble_model
    from tests.megatron_kis.fake_rank import fake_rank

    def scales(layout: Any) -> tuple[Any, DelayedScaling]:
        spec = ModelSpec(
            ModelShape(2, 32, 4, 2, 64),
            vocabulary=256,
            sequence_length=32,
            layout=layout,
            device=open_device("cpu"),
            precision="fp8",
            implementation="transformer_engine",
        )
        model = assemble_model(spec)
        return model, DelayedScaling([SimpleNamespace(config=model.config, module=model)], layout)

    with fake_rank(1, 1, 0) as layout, tempfile.TemporaryDirectory() as folder:
        _, first = scales(layout)
        saved = first.sharded_state()
        for entry in saved.values():
            entry.data.copy_(torch.rand_like(entry.data))
        staged = shards.stage({"scaling": saved}, Path(folder))
        staged.finish([staged.write()])
        model, second = scales(layout)
        loaded = shards.load({"scaling": second.sharded_state()}, Path(folder))["scaling"]
        loaded = {key: tensor.clone() for key, tensor in loaded.items()}
        for entry in second.sharded_state().values():
            entry.data.zero_()
        second.load_state(loaded)
        product = model.decoder.layers[1].mlp.linear_fc1
        used = [[float(one.scale), float(one.amax)] for one in product.quantizers["scaling_fwd"]]
    name = "decoder.layers.1.mlp.linear_fc1.scaling_fwd."
    stages = []
    for stage in (0, 1):
        with fake_rank(1, 2, stage) as layout:
            stages.append(sorted(scales(layout)[1].sharded_state()))
    return {
        "saved": [[float(one) for one in saved[name + what].data.flatten()] for what in ("scale", "amax_history")],
        "used": used,
        "equal": all(torch.equal(saved[key].data, entry.data) for key, entry in second.sharded_state().items()),
        "names": sorted(saved),
        "stages": stages,
    }
