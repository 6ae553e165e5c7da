"""Full disks and wrong kinds of path: what is said names the path, and what was there stays."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.checkpoint.folders import reason_of
from megatron_kis.cli import main as cli
from megatron_kis.common.files import read_json
from megatron_kis.common.jsonl_log import JsonLines
from megatron_kis.config.run import RunConfig
from megatron_kis.training.trainer import train
from tests.megatron_kis.ranks import SERVER, Ranks, finish
from tests.run_files import rows
from tests.runs import OFTEN

MakeRun = Callable[..., RunConfig]


def limited(arguments: list[str], size: int, log: Path) -> None:
    """``kis`` in a process that may write no file beyond ``size`` bytes."""
    import os
    import sys

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    with open(log, "wb") as output:
        os.dup2(output.fileno(), sys.stderr.fileno())
    sys.exit(cli.main(arguments))


def run_limited(config: RunConfig, size: int, tmp_path: Path) -> tuple[int | None, str]:
    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(), encoding="utf-8")
    process = SERVER.Process(target=limited, args=(["train", str(path)], size, tmp_path / "log.txt"))
    process.start()
    process.join(120)
    return process.exitcode, (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_checkpoint_that_finds_no_room_says_so_with_its_path(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(**{**OFTEN, "model": {"layers": 2, "width": 64, "heads": 2}})
    status, said = run_limited(config, 200_000, tmp_path)  # weights and moments take a megabyte
    assert status == 1, said
    assert "enforce fail" not in said and "Traceback" not in said
    place = config.output / "checkpoints" / ".step-00000020.partial"
    assert f"kis: error: a checkpoint could not be written ({place}: File too large)" in said


@pytest.mark.slow
def test_a_row_of_a_log_that_finds_no_room_names_the_log(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(logging={"every": 1}, probes={"moments": {"every": 1}})
    status, said = run_limited(config, 60_000, tmp_path)
    assert status == 1, said
    assert f"kis: error: {config.output / 'probes.jsonl'}: File too large" in said
    assert "Traceback" not in said


class Full:
    """A file on a full disk."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        return fail


def test_every_call_of_a_log_names_it(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "m.jsonl")
    log._file.close()
    log._file = Full()  # type: ignore[assignment]
    for call in (lambda: log.write({}), log.position, log.close):
        with pytest.raises(OSError, match="No space left on device") as failed:
            call()
        assert failed.value.filename == str(tmp_path / "m.jsonl")


def test_the_reason_is_the_error_of_the_system_behind_that_of_a_library(tmp_path: Path) -> None:
    def write() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    with pytest.raises(RuntimeError) as failed:
        write()
    assert reason_of(failed.value, tmp_path / "x") == f"{tmp_path / 'x'}: No space left on device"
    assert reason_of(RuntimeError("odd"), tmp_path) == f"{tmp_path}: odd"


@pytest.mark.parametrize("name", ["exposures.json", "DONE", "run.json", "outcomes/step-20.npz"])
def test_other_records_name_themselves(
    name: str, tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    config = tiny_run()
    sync = os.fsync

    def fail(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").resolve().name.startswith(f".{Path(name).name}."):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(), encoding="utf-8")
    monkeypatch.setattr(os, "fsync", fail)
    assert cli.main(["train", str(path)]) == 1
    assert f"kis: error: {config.output / name}: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("at", ["output", "above"])
def test_an_output_that_is_a_file_is_wrong_input(
    at: str, tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "afile"
    file.write_text("mine")
    path = tmp_path / "run.yaml"
    config = tiny_run(output=file if at == "output" else file / "run")
    path.write_text(config.model_dump_json(), encoding="utf-8")
    assert cli.main(["train", str(path)]) == 2
    said = f"kis: error: {file}: is a file, not a folder; choose another place"
    assert said in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.distributed
def test_all_ranks_end_alike_and_without_a_traceback(tiny_run: MakeRun, tmp_path: Path) -> None:
    config = tiny_run(output=tmp_path / "afile")
    config.output.write_text("mine")
    with Ranks(config, 2) as ranks:
        assert ranks.wait(seconds=60) == [2, 2], ranks.said()
        assert "Traceback" not in ranks.said()
        assert ranks.said().count("is a file, not a folder") == 2


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_loses_another_says_so_without_a_traceback(tiny_run: MakeRun) -> None:
    config = tiny_run(training={"token_budget": 400 * 8 * 64}, logging={"every": 1})
    with Ranks(config, 2) as ranks:
        ranks.wait_for_step(3)
        ranks.send(signal.SIGKILL, 1)
        assert ranks.processes[0].wait(timeout=60) == 1
        said = ranks.said()
    assert "kis: error: rank 0: another rank of this run has ended; its own message says why" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_of_several_ranks_prints_its_folder_once(tiny_run: MakeRun) -> None:
    config = tiny_run(model={"layers": 2, "width": 16, "heads": 2}, parallel={"pipeline": 2})
    for _ in ("trained", "left as it is"):
        said = finish(config, 2)
        assert [line for line in said.splitlines() if line == str(config.output)] == [str(config.output)]


@pytest.mark.slow
def test_half_precision_is_not_trained_on_a_cpu_and_can_be_asked_there(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import megatron_kis.training.trainer as module

    half = {"training": {"precision": "bf16"}}
    config = tiny_run(**half)
    path = tmp_path / "run.yaml"
    path.write_text(config.model_dump_json(), encoding="utf-8")
    assert cli.main(["train", str(path)]) == 2
    assert "kis: error: training.precision: is bf16; a CPU cannot train in bf16" in capsys.readouterr().err
    assert not config.output.exists()
    with monkeypatch.context() as patch:  # a checkpoint as CUDA leaves it
        patch.setattr(module, "check_precision", lambda *_, **__: None)
        run = train(config)
    index = read_json(run / "checkpoints" / "step-00000020" / "index.json", "kis.index/1")
    assert index["tensors"]["embedding.word_embeddings.weight"]["dtype"] == "bfloat16"
    capsys.readouterr()
    assert cli.main(["probe", str(run), "--device", "cpu"]) == 0
    assert "infused" in capsys.readouterr().out
    pytest.importorskip("safetensors")
    assert cli.main(["export", "hf", str(run), "--output", str(tmp_path / "hf")]) == 0
    assert rows(run, "probes.jsonl")
