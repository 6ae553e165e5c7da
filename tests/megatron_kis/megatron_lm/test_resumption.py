"""What is kept with Megatron-LM's checkpoints, and which of them a run refuses to resume from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.megatron_lm.resumption import file_of, read_progress, start_of, write_progress
from megatron_kis.megatron_lm.session import Session

IDENTITY: dict[str, Any] = {
    "settings": {"training": {"seed": 1}},
    "data": {"exposures": "a" * 64, "tokenizer": "b" * 64},
    "plan_identity": {"infusion_frequency": 8, "block": 4},
    "precision": "bf16",
}


def kept(folder: Path, **changes: Any) -> Any:
    args: Any = SimpleNamespace(save=folder, load=folder, iteration=500, consumed_train_samples=4000, kis_run=None)
    content = {"sequences": 4000, "identity": IDENTITY, "state": {}, "ledger": [1], "logs": {}, "sessions": []}
    write_progress(args, 500, content | {"skipped": [], "elapsed": 1.0} | changes)
    return args


def test_what_was_kept_comes_back_and_a_beginning_has_nothing(tmp_path: Path) -> None:
    args = kept(tmp_path)
    found = read_progress(args, IDENTITY)
    assert found is not None
    assert (found.step, found.manifest["ledger"], found.folder) == (500, [1], file_of(tmp_path, 500))
    args.iteration = 0  # also with --finetune
    assert read_progress(args, IDENTITY) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plan_identity": {"infusion_frequency": 6, "block": 4}}, "another exposure plan: infusion_frequency 8 -> 6"),
        ({"data": {**IDENTITY["data"], "exposures": "c" * 64}}, "other data: exposures aaaaaaaaaaaa -> cccccccccccc"),
        ({"settings": {"training": {"seed": 2}}}, "with other settings: training.seed 1 -> 2"),
        ({"precision": "fp32"}, "in another precision: is bf16 -> fp32"),
    ],
)
def test_another_run_is_refused_and_told_how_to_go_on(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_progress(kept(tmp_path), IDENTITY | change)
    message = str(caught.value)
    assert message.startswith(f"--load {tmp_path}: iteration 500 was trained ")
    assert said in message
    assert "--finetune" in message


def test_a_run_with_a_file_is_not_told_to_begin_from_weights(tmp_path: Path) -> None:
    args = kept(tmp_path)
    args.kis_run = Path("run.yaml")
    with pytest.raises(InputError) as caught:
        read_progress(args, IDENTITY | {"precision": "fp32"})
    assert "--finetune" not in str(caught.value) and "begin a new run" in str(caught.value)


def test_the_weights_that_a_run_began_with_are_known_after_a_resume(tmp_path: Path) -> None:
    pretrained, saved = tmp_path / "pretrained", tmp_path / "saved"
    args: Any = SimpleNamespace(load=saved, pretrained_checkpoint=pretrained, iteration=0)
    assert start_of(args) is None
    for flag, folder in (("--pretrained-checkpoint", pretrained), ("--load", saved)):  # the latter goes first
        folder.mkdir()
        (folder / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")
        assert start_of(args) == (flag, str(folder))
    settings = {"megatron_lm": {"start": str(pretrained)}}
    resumed = kept(saved, identity=IDENTITY | {"settings": settings})
    assert start_of(resumed) == ("--load", str(pretrained))
    assert start_of(kept(saved)) is None


def test_the_argument_is_named_that_gives_a_run_with_a_file_other_weights(tmp_path: Path) -> None:
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    (pretrained / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")
    args = SimpleNamespace(load=tmp_path, pretrained_checkpoint=pretrained, iteration=0, kis_run=Path("run.yaml"))
    session: Any = SimpleNamespace(_args=args)
    with pytest.raises(
        InputError, match=r"^--pretrained-checkpoint: the run would begin with the weights of .*; leave"
    ):
        Session._other_settings(session)


def test_a_checkpoint_without_a_plan_is_refused(tmp_path: Path) -> None:
    args = kept(tmp_path)
    args.iteration = 600
    with pytest.raises(InputError, match=r"iteration 600 was saved without an exposure plan .*iter_0000600.json"):
        read_progress(args, IDENTITY)


def test_a_count_of_other_sequences_is_refused(tmp_path: Path) -> None:
    args = kept(tmp_path, sequences=3992)
    with pytest.raises(InputError, match=r"has consumed 4000 sequences, and .* says 3992"):
        read_progress(args, IDENTITY)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    args = kept(tmp_path)
    path = file_of(tmp_path, 500)
    path.write_text(path.read_text(encoding="utf-8").replace('"skipped"', '"skiped"'), encoding="utf-8")
    with pytest.raises(InputError, match="skipped"):
        read_progress(args, IDENTITY)


@pytest.mark.parametrize("key", IDENTITY)
def test_a_file_without_a_part_of_the_identity_is_refused(tmp_path: Path, key: str) -> None:
    args = kept(tmp_path, identity={name: value for name, value in IDENTITY.items() if name != key})
    with pytest.raises(InputError, match=rf"iter_0000500\.json: identity\.{key} is missing"):
        read_progress(args, IDENTITY)
    with pytest.raises(InputError, match=rf"identity\.{key} is missing"):
        start_of(args)
