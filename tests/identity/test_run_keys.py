"""Every key of a run is changed between two commands: it is refused by name, or it changes no result.

The table is checked against the configuration's own classes: a key that is added later has to be entered.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.training.trainer import train
from tests.identity.keys import keys_of
from tests.runs import CutCallback, CutOff, hashes


@dataclass(frozen=True)
class Change:
    """What is changed to try a key, and what has to come of it."""

    values: dict[str, Any]
    """Dotted keys and their new values; a section is replaced as a whole."""

    refused: str | None = None
    """What the refusal must name; None where no result may change."""

    exact: bool = True
    """Whether a resumed run must end bit for bit the same; else up to the order of sums."""

    asks: bool = False
    """Whether it says what a run is asked, and when: its last answers are the same, there may be others before."""


def counts(key: str, value: Any, *, named: str | None = None, **more: Any) -> tuple[str, Change]:
    """A key that can change a result: refused by its name."""
    return key, Change({key: value} | more, refused=named or key)


def free(key: str, value: Any, *, exact: bool = True, **more: Any) -> tuple[str, Change]:
    """A key that changes no result."""
    return key, Change({key: value} | more, exact=exact)


def asks(key: str, value: Any) -> tuple[str, Change]:
    """A key that says what a run is asked: no other run, and the one that goes on is asked what it began with."""
    return key, Change({key: value}, asks=True)


_GROUPS = "infusion.background.groups"


def _grouped(facts: int, frequency: int) -> dict[str, Any]:
    return {"infusion.background": {"policy": "displaced", "groups": [{"facts": facts, "frequency": frequency}]}}


TABLE: dict[str, Change] = dict(
    [
        free("name", "other"),
        free("study", "some_study"),
        free("device", "auto"),
        free("data.validation", "COPY/corpus.validation"),
        free("data.exposures", "COPY/exposures"),
        free("data.tokenizer", "COPY/tokenizer.model"),
        counts("data.fingerprints", {"corpus": "0" * 64}, named="corpus"),
        free("data.corpus.prefix", None, **{"data.corpus": [{"prefix": "COPY/corpus", "weight": 1.0}]}),
        counts(
            "data.corpus.weight",
            None,
            named="corpus",
            **{
                "data.corpus": [
                    {"prefix": "COPY/corpus", "weight": 1.0},
                    {"prefix": "COPY/corpus.validation", "weight": 1.0},
                ]
            },
        ),
        counts("model.preset", None, named="model.layers", model={"preset": "cpu-48"}),
        free("model.name", "another"),
        counts("model.layers", 3),
        counts("model.width", 32),
        counts("model.heads", 4),
        counts("model.query_groups", 1),
        counts("model.ffn_width", 64),
        counts("model.tied_embeddings", False),
        counts("model.rope_base", 5000),
        counts("model.norm_epsilon", 1e-6),
        counts("model.head_width", 4),
        counts("model.qkv_bias", True),
        counts("model.qk_norm", True),
        counts("model.rope_scaling", 8.0),
        counts("model.init_std", 0.03),
        free("model.transformer_impl", "local", exact=False),
        counts("training.token_budget", 30 * 8 * 64),
        counts("training.sequence_length", 128),
        counts("training.global_batch_size", 4),
        free("training.micro_batch_size", 2, exact=False),
        counts("training.seed", 1),
        free("training.precision", "fp32"),  # what auto is on a CPU; bf16 is refused there
        free("training.deterministic", True),  # as a CPU always is
        counts("training.optimizer.learning_rate", 1e-3),
        counts("training.optimizer.reference_width", 64),
        counts("training.optimizer.schedule", "wsd"),
        counts("training.optimizer.warmup_share", 0.3),
        counts("training.optimizer.decay_share", 0.3),
        counts("training.optimizer.minimum_share", 0.2),
        counts("training.optimizer.weight_decay", 0.2),
        counts("training.optimizer.beta1", 0.8),
        counts("training.optimizer.beta2", 0.9),
        counts("training.optimizer.epsilon", 1e-7),
        counts("training.optimizer.gradient_clip", 0.5),
        counts("training.guard.skip_in_a_row", 2),
        counts("training.guard.loss_rise", 5.0),
        free("training.guard.hang_minutes", 10.0),
        counts("infusion.frequency", 4),
        counts("infusion.ratio", None, named="infusion.", **{"infusion.frequency": None, "infusion.ratio": 0.05}),
        counts("infusion.begins", 0.5),
        counts("infusion.facts", 8),
        counts("infusion.zipf_exponent", 0.5),
        counts("infusion.schedule", "front_loaded"),
        counts("infusion.templates", "random"),
        counts("infusion.background.policy", "protected"),
        counts("infusion.background.frequency", 3),
        counts("infusion.background.groups.facts", None, named=_GROUPS, **_grouped(8, 6)),
        counts("infusion.background.groups.frequency", None, named=_GROUPS, **_grouped(16, 5)),
        counts(
            "infusion.background.schedule",
            None,
            **{"infusion.background": {"policy": "protected", "frequency": 6, "schedule": "back_loaded"}},
        ),
        counts("documents.reset_attention", True),
        counts("documents.mask_boundaries", True),
        free("parallel.replicas", 2),
        free("parallel.sequence", False),
        free("parallel.recompute", "full", exact=False),
        asks("probes.moments.shares", [0.5, 1.0]),
        asks("probes.moments.every", 7),
        asks("probes.moments.tokens", [5 * 8 * 64]),
        asks("probes.templates", {"train": 1}),
        asks("probes.facts_per_group", 8),
        free("probes.batch_size", 64, exact=False),
        counts("validation.moments.shares", [1.0]),
        counts("validation.moments.every", 7),
        counts("validation.moments.tokens", [5 * 8 * 64]),
        counts("validation.max_tokens", 128),
        free("checkpoints.moments.shares", [0.6, 1.0]),
        free("checkpoints.moments.every", 3),
        free("checkpoints.moments.tokens", [15 * 8 * 64]),
        free("checkpoints.moments.minutes", None),
        free("checkpoints.keep_last", 1),
        free("checkpoints.keep_best", False),
        free("checkpoints.asynchronous", True),
        free("logging.every", 2),
    ]
)

ELSEWHERE = {
    "documents.eod_belongs_to": "counts with reset_attention: tests/megatron_kis/test_documents.py",
    "output": "another folder is another run, and the old one stays: tests/megatron_kis/test_training.py",
    "model.init_from": "counts by its weights: tests/megatron_kis/imports/test_huggingface.py",
    "infusion.frequencies": "counts by the plan: tests/megatron_kis/test_infusion_settings.py",
    "trunk": "begins with the same weights: tests/megatron_kis/training/test_trunk.py",
    "extends": "counts by the plan: tests/megatron_kis/data/test_extension.py",
    "parallel.tensor": "needs processes: tests/megatron_kis/test_resume.py",
    "parallel.pipeline": "needs processes: tests/megatron_kis/test_resume.py",
    "parallel.virtual": "needs processes: tests/megatron_kis/test_resume.py",
    "parallel.context": "needs processes: tests/megatron_kis/test_parallel.py",
    "logging.tensorboard": "writes elsewhere alone: tests/megatron_kis/training/test_trackers.py",
    "logging.wandb": "writes elsewhere alone: tests/megatron_kis/training/test_trackers.py",
}
"""Keys that cannot be tried here, and where they are."""

REFUSED = sorted(key for key, change in TABLE.items() if change.refused)
FREE = sorted(key for key, change in TABLE.items() if not change.refused)


@dataclass
class Trained:
    """A finished run, and one that was cut off after its checkpoint of step 10."""

    config: RunConfig
    done: Path
    cut: Path
    copy: Path
    """Of the data."""
    before: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Trained:
    folder = tmp_path_factory.mktemp("identity")
    shutil.copytree(tiny_data, folder / "copy")
    config = parse_config(
        RunConfig,
        {
            "name": "tiny",
            "output": folder / "done",
            "device": "cpu",
            "data": {
                "corpus": tiny_data / "corpus",
                "validation": tiny_data / "corpus.validation",
                "exposures": tiny_data / "exposures",
                "tokenizer": tiny_data / "tokenizer.model",
            },
            "model": {"layers": 2, "width": 16, "heads": 2},
            "training": {"token_budget": 20 * 8 * 64, "sequence_length": 64, "global_batch_size": 8},
            "infusion": {"frequency": 8, "background": {"frequency": 6}},
            "probes": {"moments": {"shares": [1.0]}, "templates": {"train": 2, "held_out": 1, "question": 1}},
            "validation": {"moments": {"shares": [0.5, 1.0]}},
            "checkpoints": {"moments": {"every": 5}, "asynchronous": False},
            "logging": {"every": 1},
        },
        source="tiny",
    )
    train(config)
    with pytest.raises(CutOff):
        train(config.model_copy(update={"output": folder / "cut"}), callbacks=[CutCallback])
    found = Trained(config, folder / "done", folder / "cut", folder / "copy")
    found.before = {name: hashes(folder / name) for name in ("done", "cut")}
    return found


def changed(trained: Trained, change: Change, output: Path) -> RunConfig:
    content = trained.config.model_dump(mode="json") | {"output": str(output)}
    for key, value in change.values.items():
        if value is None and key not in ("checkpoints.moments.minutes", "infusion.frequency"):
            continue  # stands for the other keys of its entry
        *path, last = key.split(".")
        section = content
        for part in path:
            section = section[part]
        section[last] = json.loads(json.dumps(value).replace("COPY", str(trained.copy)))
    return parse_config(RunConfig, content, source="changed")


def results(folder: Path) -> dict[str, Any]:
    """What a run found, without times and speeds."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    probes = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    return {
        "validation": [(row["step"], row["loss"]) for row in metrics if row["kind"] == "validation"],
        "loss": [(row["step"], row["loss"]) for row in metrics if row["kind"] == "train" and row["step"] % 2 == 0],
        "margins": [
            (row["step"], row["group"], row["split"], row["scoring"], row["correct"], row["margin"]) for row in probes
        ],
        "ledger": json.loads((folder / "exposures.json").read_text()),
    }


def test_the_table_holds_every_key_of_a_run() -> None:
    assert set(keys_of(RunConfig)) == set(TABLE) | set(ELSEWHERE)
    assert not set(TABLE) & set(ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("state", ["done", "cut"])
def test_a_setting_that_counts_is_refused_by_name_and_nothing_is_touched(
    trained: Trained, key: str, state: str
) -> None:
    folder = trained.done if state == "done" else trained.cut
    with pytest.raises(InputError) as caught:
        train(changed(trained, TABLE[key], folder))
    assert str(TABLE[key].refused) in str(caught.value)
    assert hashes(folder) == trained.before[state]


@pytest.mark.slow
@pytest.mark.parametrize("key", FREE)
def test_a_setting_that_does_not_count_leaves_a_finished_run_as_it_is(trained: Trained, key: str) -> None:
    train(changed(trained, TABLE[key], trained.done))
    assert hashes(trained.done) == trained.before["done"]


ASKS = [key for key in FREE if TABLE[key].asks]
EXACT = [key for key in FREE if TABLE[key].exact and key != "logging.every" and key not in ASKS]
ALONE = [key for key in FREE if key not in (*EXACT, *ASKS)]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [EXACT, ASKS, *([key] for key in ALONE)], ids=lambda keys: keys[-1])
def test_settings_that_do_not_count_change_no_result_of_a_resumed_run(
    trained: Trained, keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.cut, tmp_path / "run")
    values = {name: value for key in keys for name, value in TABLE[key].values.items()}
    train(changed(trained, Change(values), tmp_path / "run"))
    assert "from step 10" in capsys.readouterr().err
    ours, theirs = results(tmp_path / "run"), results(trained.done)
    assert ours["ledger"] == theirs["ledger"]
    if keys == ["logging.every"]:  # rows of training are written at other steps
        ours.pop("loss"), theirs.pop("loss")
    if keys == ASKS:
        ours["margins"] = [row for row in ours["margins"] if row[0] == 20]
    if all(TABLE[key].exact for key in keys):
        assert ours == theirs
        return
    for name in ("validation", "loss"):
        np.testing.assert_allclose([row[-1] for row in ours[name]], [row[-1] for row in theirs[name]], atol=1e-5)
    margins = [[row[-1] for row in found["margins"]] for found in (ours, theirs)]
    np.testing.assert_allclose(margins[0], margins[1], atol=1e-3)
