"""One checkpoint seen in two ways: in the engine and in ``transformers``, or with two implementations of the layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_kis.data.general_text import ValidationText
from megatron_kis.evaluate.restore import restored
from megatron_kis.probes.forward import Scorer
from megatron_kis.probes.probe import Probe
from megatron_kis.training.artifacts import open_run

ROWS = 8  # sequences whose logits are compared


def exported(run: str, model: str, device: str) -> dict[str, Any]:
    """Logits and validation loss of a run next to those of its export in fp32 on the CPU.

    Args:
        run: the run's folder.
        model: the exported one.
        device: of the run's model.
    """
    from transformers import AutoModelForCausalLM

    from benchmarks.gpu.runs import log_rows

    past = open_run(Path(run))
    config = past.config.model_copy(update={"device": device})
    length = config.training.sequence_length
    text = ValidationText(config.data.validation, sequence_length=length, max_tokens=config.validation.max_tokens)
    tokens = torch.from_numpy(np.stack([text[number] for number in range(len(text))]).astype(np.int64))
    with restored(Path(run), config, vocabulary=past.tokenizer.vocab_size, step=None) as (engine, _):
        some = tokens[:ROWS, :-1].to(engine.device.torch_device)
        places = torch.arange(length, device=some.device).expand_as(some)
        ours = engine.forward(partial(_logits, some, places), rows=len(some), length=length)
        assert ours is not None
        ours = ours.float().cpu()
    theirs = AutoModelForCausalLM.from_pretrained(model).float().eval()
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for part in tokens.split(ROWS):
            logits = theirs(part[:, :-1]).logits
            if not losses:
                apart = (logits - ours).abs()
            losses.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none"))
    wanted = float(torch.cat(losses).double().mean())
    measured = log_rows(Path(run), "validation")[-1]["loss"]
    return {
        "logits": {"difference": float(apart.max()), "mean_difference": float(apart.mean()), "std": float(ours.std())},
        "validation_loss": {"run": measured, "exported": wanted, "difference": abs(measured - wanted)},
    }


def _logits(tokens: torch.Tensor, places: torch.Tensor, chunk: Any) -> torch.Tensor:
    output: torch.Tensor = chunk(tokens, places, None)
    return output


def implementations(run: str, device: str, names: list[str]) -> dict[str, Any]:
    """Log-likelihoods of a run's questions with two implementations of the layers.

    Args:
        run: the run's folder.
        device: where to ask.
        names: values of ``model.transformer_impl``.
    """
    past = open_run(Path(run))
    questions = past.questions(past.config.probes.templates)
    found = []
    for name in names:
        model = past.config.model.model_copy(update={"transformer_impl": name})
        config = past.config.model_copy(update={"device": device, "model": model})
        with restored(Path(run), config, vocabulary=past.tokenizer.vocab_size, step=None) as (engine, _):
            scorer = Scorer(engine)
            probe = Probe(questions, batch_size=config.probes.batch_size, branching=scorer.branching)
            result = probe.evaluate(scorer.score)
            assert result is not None
            found.append(np.where(np.isfinite(result.scores), result.scores, 0.0))
    apart = np.abs(found[0] - found[1])
    return {
        "names": names,
        "largest_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
        "questions": len(apart),
    }
