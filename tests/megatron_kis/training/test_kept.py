"""A run keeps its inputs: what it is asked and exported with is its own, wherever it lies and whatever has changed."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.checkpoint.folders import write_manifest
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, sha256_file, write_json
from megatron_kis.common.identity import settings_of
from megatron_kis.config.run import RunConfig
from megatron_kis.data_tools.preparation.prepare import DataPrepConfig, prepare_data
from megatron_kis.data_tools.selection.select import SelectConfig
from megatron_kis.data_tools.tokenizers.base import made_with
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer
from megatron_kis.training.artifacts import open_run
from megatron_kis.training.audit import audit_run
from megatron_kis.training.trainer import train
from tests.conftest import TINY_SELECTION
from tests.runs import OFTEN, cut_off, trained
from tests.sources import Sources

MakeRun = Callable[..., RunConfig]


def settings(sources: Sources, **changes: Any) -> DataPrepConfig:
    given: dict[str, Any] = {
        "text": (sources.text,),
        "facts": sources.triples,
        "templates": sources.templates,
        "vocab_size": 400,
        "select": SelectConfig(**TINY_SELECTION),
        "validation_share": 0.05,
        **changes,
    }
    return DataPrepConfig(**given)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "study" / "data"))


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources) -> Path:
    """The same data with another tokenizer."""
    folder = tmp_path_factory.mktemp("other") / "data"
    prepare_data(settings(tiny_sources, vocab_size=390), folder)
    return folder


def on(make: MakeRun, data: Path, **changes: Any) -> RunConfig:
    files = {
        "corpus": data / "corpus",
        "validation": data / "corpus.validation",
        "exposures": data / "exposures",
        "tokenizer": data / "tokenizer.model",
    }
    return make(data=files, output=data.parent / "runs" / changes.get("name", "tiny"), **changes)


def asked(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["probe", str(run), "--device", "cpu", "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    for row in found["rows"]:
        row["seconds"] = 0
    return found


@pytest.mark.slow
def test_a_copied_run_is_asked_and_exported_without_its_data(
    tiny_run: MakeRun, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    run = train(on(tiny_run, data))
    before = asked(run, capsys)
    elsewhere = Path(shutil.copytree(run, tmp_path / "another machine" / "run"))
    shutil.rmtree(tmp_path / "study")
    monkeypatch.chdir(tmp_path)
    run = elsewhere.relative_to(tmp_path)
    after = asked(run, capsys)
    assert after["rows"] == before["rows"]
    assert after["questions_sha256"] == read_json(elsewhere / "run.json", "kis.run/1")["fingerprints"]["questions"]
    assert main(["export", "hf", str(run), "--output", "hf"]) == 0
    assert main(["export", "lm-eval", str(run), "--output", "tasks"]) == 0
    assert main(["probe", str(run), "--histories", "histories.csv"]) == 0
    assert main(["data", "inspect", str(run)]) == 0
    assert open_run(run).config.output == run
    capsys.readouterr()
    assert main(["data", "inspect", str(run), "--recount"]) == 2
    assert "study/data" in capsys.readouterr().err


@pytest.mark.slow
def test_the_record_names_its_neighbours_by_relative_paths(
    tiny_run: MakeRun, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    config = on(tiny_run, Path("data"))
    run = train(config)
    record = read_json(run / "run.json", "kis.run/1")
    assert record["inputs"] == {"tokenizer": "inputs/tokenizer.model", "questions": "inputs/questions.jsonl.gz"}
    assert record["settings"] == settings_of(config.model_dump(mode="json"))
    assert record["config"]["data"]["corpus"] == "../../data/corpus"
    assert record["general_text"][0]["corpus"] == "../../data/corpus"
    monkeypatch.chdir(data)
    moved = data.parent / run
    assert open_run(moved).config.data.corpus == data / "corpus"
    assert audit_run(moved)["infused"]["facts"] == 16


@pytest.mark.slow
def test_other_data_at_the_old_place_change_no_export_and_no_probe(
    tiny_run: MakeRun,
    data: Path,
    other_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("safetensors")
    run = train(on(tiny_run, data))
    before = asked(run, capsys)
    for name in ("hf", "lm-eval"):
        assert main(["export", name, str(run), "--output", str(tmp_path / f"{name} before")]) == 0
    old = load_tokenizer(data / "tokenizer.model").fingerprint
    shutil.rmtree(data)
    shutil.copytree(other_data, data)
    new = load_tokenizer(data / "tokenizer.model").fingerprint
    assert new != old
    assert asked(run, capsys)["rows"] == before["rows"]
    for name in ("hf", "lm-eval"):
        assert main(["export", name, str(run), "--output", str(tmp_path / f"{name} after")]) == 0
    for name in ("tokenizer.json", "model.safetensors", "export.json"):
        assert sha256_file(tmp_path / "hf before" / name) == sha256_file(tmp_path / "hf after" / name)
    record = json.loads((tmp_path / "hf after" / "export.json").read_text())
    assert record["fingerprints"]["tokenizer"] == old
    assert record["files"]["tokenizer.json"] == sha256_file(tmp_path / "hf after" / "tokenizer.json")
    task = "kis_infused_held_out_answer.jsonl"
    assert (tmp_path / "lm-eval before" / task).read_bytes() == (tmp_path / "lm-eval after" / task).read_bytes()
    capsys.readouterr()
    assert main(["probe", str(run), "--device", "cpu", "--exposures", str(data / "exposures")]) == 2
    said = capsys.readouterr().err
    assert new[:12] in said and old[:12] in said  # questions of another tokenizer


COMMANDS = (
    ["probe", "RUN", "--device", "cpu"],
    ["export", "hf", "RUN", "--output", "OUT"],
    ["export", "lm-eval", "RUN", "--output", "OUT"],
)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tokenizer", "questions"])
def test_a_kept_file_that_is_another_one_is_refused(
    what: str, tiny_run: MakeRun, tiny_sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    run = trained(tiny_run())
    was = read_json(run / "run.json", "kis.run/1")["fingerprints"][what]
    if what == "tokenizer":
        texts = [json.loads(line)["text"] for line in tiny_sources.text.read_text().splitlines()]
        found = train_tokenizer(texts, run / "inputs" / "tokenizer.model", TokenizerConfig(vocab_size=330)).fingerprint
    else:
        lines = gzip.decompress((run / "inputs" / "questions.jsonl.gz").read_bytes()).splitlines(keepends=True)
        (run / "inputs" / "questions.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:-1]), mtime=0))
        other = tmp_path / "other"
        other.write_bytes(b"".join(lines[:-1]))
        found = sha256_file(other)
    for words in (*COMMANDS, ["probe", "RUN", "--histories", "OUT"])[: 4 if what == "questions" else 3]:
        names = {"RUN": str(run), "OUT": str(tmp_path / "out")}
        capsys.readouterr()
        assert main([names.get(word, word) for word in words]) == 2, words
        said = capsys.readouterr().err
        assert was[:16] in said and found[:16] in said and str(run / "inputs") in said
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_kept_file_that_is_cut_off_or_gone_is_named(tiny_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tiny_run())
    path = run / "inputs" / "questions.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-40])
    assert main(["probe", str(run), "--device", "cpu"]) == 2
    assert f"{path}: not a whole gzip file" in capsys.readouterr().err
    path.unlink()
    assert main(["probe", str(run), "--device", "cpu"]) == 2  # although the data have them
    assert str(path) in capsys.readouterr().err


def made_older(run: Path, config: RunConfig) -> None:
    """Makes a run one of before runs kept their inputs."""
    record = read_json(run / "run.json", "kis.run/1")
    for name in ("inputs", "settings", "beginning"):
        record.pop(name)
    write_json(run / "run.json", record | {"config": config.model_dump(mode="json")})
    shutil.rmtree(run / "inputs")
    close_again(run)


def close_again(run: Path) -> None:
    """Closes a run with the ``run.json`` that is there now."""
    if (run / "DONE").exists():
        done = read_json(run / "DONE", "kis.done/1")
        write_json(run / "DONE", done | {"files": done["files"] | {"run.json": sha256_file(run / "run.json")}})


@pytest.mark.slow
@pytest.mark.parametrize("closed", [True, False])
def test_a_record_that_was_edited_is_not_what_a_run_is_asked_with(
    tiny_run: MakeRun, closed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run()
    run = trained(config)
    record = read_json(run / "run.json", "kis.run/1")
    record["config"]["model"]["rope_base"] = 500
    write_json(run / "run.json", record)
    if closed:
        close_again(run)
    assert main(["probe", str(run)]) == 2
    said = capsys.readouterr().err
    assert ("model.rope_base" if closed else "was changed after the run was closed") in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"inputs": {"tokenizer": 5}}, {"config": 5}, {"fingerprints": []}, {"max_position_embeddings": "x"}]
)
def test_a_record_of_other_types_is_wrong_input(
    tiny_run: MakeRun, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tiny_run())
    write_json(run / "run.json", read_json(run / "run.json", "kis.run/1") | change)
    close_again(run)
    assert main(["probe", str(run)]) == 2
    assert "run.json" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{}", '{"schema": "kis.done/1", "files": 5}'])
def test_a_run_whose_done_closes_nothing_is_not_used(
    tiny_run: MakeRun, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run()
    run = trained(config)
    (run / "DONE").write_text(content)
    assert main(["probe", str(run)]) == 2
    assert "DONE" in capsys.readouterr().err
    with pytest.raises(InputError, match="DONE"):
        train(config)
    assert load_runs(run.parent).problems["status"].tolist() == ["damaged"]


@pytest.mark.slow
def test_an_older_run_is_asked_with_the_files_at_the_old_place_if_they_are_the_same(
    tiny_run: MakeRun,
    data: Path,
    other_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    config = on(tiny_run, Path("study/data"))
    run = train(config)
    before = asked(run, capsys)
    made_older(run, config)
    assert asked(run, capsys)["rows"] == before["rows"]
    old = load_tokenizer(data / "tokenizer.model").fingerprint
    shutil.rmtree(data)
    shutil.copytree(other_data, data)
    new = load_tokenizer(data / "tokenizer.model").fingerprint
    for words in COMMANDS:
        capsys.readouterr()
        assert main([{"RUN": str(run), "OUT": "out"}.get(word, word) for word in words]) == 2, words
        said = capsys.readouterr().err
        assert old[:16] in said and new[:16] in said
        assert not Path("out").exists()


@pytest.mark.slow
def test_a_resumed_run_keeps_what_it_began_with_and_an_older_one_gets_it(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 7)
    folder = config.output / "inputs"
    before = {path.name: (path.stat().st_mtime_ns, sha256_file(path)) for path in folder.iterdir()}
    cut_off(config, 12)
    assert {path.name: (path.stat().st_mtime_ns, sha256_file(path)) for path in folder.iterdir()} == before
    shutil.rmtree(folder)
    train(config)
    assert {path.name: sha256_file(path) for path in folder.iterdir()} == {
        name: was for name, (_, was) in before.items()
    }
    assert read_json(config.output / "run.json", "kis.run/1")["inputs"]["tokenizer"] == "inputs/tokenizer.model"


@pytest.mark.slow
def test_a_resume_refuses_a_kept_file_that_is_another_one(tiny_run: MakeRun) -> None:
    config = tiny_run(**OFTEN)
    cut_off(config, 7)
    (config.output / "inputs" / "questions.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(InputError, match=r"inputs/questions\.jsonl\.gz: these are not the questions of the run"):
        train(config)


@pytest.mark.slow
def test_questions_that_change_while_a_run_starts_are_refused(
    tiny_run: MakeRun, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on(tiny_run, data)
    import megatron_kis.training.trainer as module

    opened = module.open_inputs

    def open_and_change(config: RunConfig, **more: Any) -> Any:
        inputs = opened(config, **more)
        with open(config.data.questions, "a", encoding="utf-8") as file:
            file.write("\n")
        return inputs

    monkeypatch.setattr(module, "open_inputs", open_and_change)
    with pytest.raises(InputError, match=r"exposures\.questions\.jsonl: these are not the questions of the run"):
        train(config)
    assert not (config.output / "run.json").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_run_in_the_folder_is_refused(
    tiny_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    run = trained(tiny_run())
    other = train(tiny_run(name="other", training={"optimizer": {"learning_rate": 1e-4}}))
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    assert main(["export", "hf", str(run), "--output", str(tmp_path / "hf")]) == 2
    assert "is another run's (training.optimizer.learning_rate 0.003 -> 0.0001)" in capsys.readouterr().err
    assert main(["probe", str(run), "--device", "cpu"]) == 2


@pytest.mark.slow
def test_an_extended_run_and_its_file_of_frequencies_may_move_together(
    tiny_run: MakeRun, data: Path, tmp_path: Path
) -> None:
    facts = [json.loads(line) for line in (data / "facts.jsonl").read_text().splitlines()]
    listed = tmp_path / "frequencies.tsv"
    names = [fact["id"] for fact in facts if fact["group"] == "infused"]
    listed.write_text("".join(f"{name}\t{4 + at % 3}\n" for at, name in enumerate(names)))
    first = on(tiny_run, data, name="first", infusion={"frequency": None, "frequencies": listed})
    train(first)
    assert open_run(first.output).record["inputs"]["frequencies"] == "inputs/frequencies.tsv"
    listed.unlink()
    moved = Path(shutil.move(tmp_path / "study", tmp_path / "moved"))
    longer = on(
        tiny_run,
        moved / "data",
        name="longer",
        extends=moved / "runs" / "first",
        training={"token_budget": 30 * 8 * 64},
        infusion={"frequency": 2},
    )
    train(longer)
    record = open_run(train(longer)).record
    assert record["plan"]["extends"] == open_run(moved / "runs" / "first").record["plan"]


def test_an_older_fingerprint_of_a_tokenizer_is_that_of_its_model_file(tmp_path: Path, tiny_sources: Sources) -> None:
    texts = [json.loads(line)["text"] for line in tiny_sources.text.read_text().splitlines()[:200]]
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer.json", TokenizerConfig(vocab_size=300, kind="byte-bpe"))
    assert tokenizer.model_sha256 != tokenizer.fingerprint
    assert made_with(tokenizer, tokenizer.fingerprint, 7)
    assert made_with(tokenizer, tokenizer.model_sha256, tokenizer.eod_id)
    assert made_with(tokenizer, tokenizer.model_sha256)
    assert not made_with(tokenizer, tokenizer.model_sha256, tokenizer.eod_id + 1)
    assert not made_with(tokenizer, "0" * 64, tokenizer.eod_id)


@pytest.mark.slow
def test_an_older_run_of_a_tokenizer_json_resumes_and_one_of_another_end_of_documents_does_not(
    tiny_run: MakeRun, tmp_path: Path, tiny_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [json.loads(line)["text"] for line in tiny_sources.text.read_text().splitlines()]
    model = tmp_path / "own" / "tokenizer.json"
    model.parent.mkdir()
    tokenizer = train_tokenizer(texts, model, TokenizerConfig(vocab_size=320, kind="byte-bpe"))
    data = tmp_path / "study" / "data"
    prepare_data(settings(tiny_sources, tokenizer=model), data)
    for name in ("corpus.meta.json", "corpus.validation.meta.json", "exposures.json", "exposures.questions.jsonl"):
        path = data / name  # as they were made when the file's hash was the fingerprint
        path.write_text(path.read_text().replace(tokenizer.fingerprint, tokenizer.model_sha256))
    config = on(tiny_run, data, **OFTEN)
    config = config.model_copy(update={"data": config.data.model_copy(update={"tokenizer": model})})
    cut_off(config, 7)
    manifest_path = config.output / "checkpoints" / "step-00000005" / "checkpoint.json"
    manifest = json.loads(manifest_path.read_text())
    manifest["identity"]["data"]["tokenizer"] = tokenizer.model_sha256
    write_manifest(manifest_path, manifest)
    train(config)
    record = read_json(config.output / "run.json", "kis.run/1")
    assert [session["from_step"] for session in record["sessions"]] == [0, 5]
    record["fingerprints"]["tokenizer"] = tokenizer.model_sha256
    record.pop("inputs")
    record["config"] = config.model_dump(mode="json")
    write_json(config.output / "run.json", record)
    close_again(config.output)
    train(config)  # done
    assert main(["probe", str(config.output), "--device", "cpu"]) == 0
    meta = model.with_name("tokenizer.json.meta.json")
    meta.write_text(meta.read_text().replace('"<|endoftext|>"', '"a"'))
    assert load_tokenizer(model).model_sha256 == tokenizer.model_sha256
    with pytest.raises(InputError, match=r"was made with tokenizer .* and the end-of-document token"):
        train(config)
    capsys.readouterr()
    assert main(["probe", str(config.output), "--device", "cpu"]) == 2
    assert "and the end-of-document token" in capsys.readouterr().err
