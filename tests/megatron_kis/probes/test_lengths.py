"""Questions that are longer than a run's sequences are refused before they are asked, and before training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.training.inputs import open_inputs
from tests.runs import trained

pytestmark = pytest.mark.slow

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def long_questions(tiny_data: Path, tmp_path: Path) -> Path:
    """The prefix of data one of whose questions takes 65 tokens."""
    folder = tmp_path / "long"
    folder.mkdir()
    for path in tiny_data.glob("exposures.*"):
        shutil.copy(path, folder / path.name)
    path = folder / "exposures.questions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    at = next(at for at, line in enumerate(lines) if '"held_out"' in line)
    row = json.loads(lines[at])
    tokens = row["options"][2]["tokens"]
    tokens += [tokens[-1]] * (64 - len(tokens))
    path.write_text("\n".join([*lines[:at], json.dumps(row), *lines[at + 1 :]]) + "\n", encoding="utf-8")
    return folder / "exposures"


def test_they_are_refused_before_training_and_by_probe_and_export(
    tiny_run: MakeRun, tiny_data: Path, long_questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"exposures": long_questions}
    with pytest.raises(InputError, match=r"long/exposures\.questions\.jsonl: 1 of 192 questions are longer than 64"):
        open_inputs(tiny_run(data=data))
    asks_others = {"templates": {"train": 1, "held_out": 0, "question": 1}}
    assert open_inputs(tiny_run(data=data, probes=asks_others)).questions.questions
    run = trained(tiny_run())
    for command in (["probe", "--device", "cpu"], ["export", "lm-eval", "--output", str(tmp_path / "t")]):
        assert main([*command, str(run), "--exposures", str(long_questions)]) == 2
        assert "questions are longer than 64 tokens, the longest with 65" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
