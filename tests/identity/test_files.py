"""Every file that a run was made with is replaced between two commands.

What continues the run refuses the file, with both fingerprints. What asks or exports a finished run has no need of it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from megatron_kis.analysis.runs.load import load_runs
from megatron_kis.cli.main import main
from megatron_kis.common.configuration import parse_config
from megatron_kis.common.files import read_json
from megatron_kis.config.run import RunConfig
from megatron_kis.data_tools.preparation.prepare import DataPrepConfig, prepare_data
from megatron_kis.data_tools.selection.select import SelectConfig
from megatron_kis.training.trainer import train
from tests.conftest import TINY_SELECTION, TINY_VOCABULARY
from tests.runs import CutCallback, CutOff, hashes
from tests.sources import Sources

pytestmark = pytest.mark.slow

CORPUS = (".bin", ".idx", ".meta.json")
VALIDATION = (".validation.bin", ".validation.idx", ".validation.meta.json")
STORE = (".bin", ".idx", ".json", ".facts.npy", ".ids.txt")

FILES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "text": ("other_text", tuple(f"corpus{suffix}" for suffix in CORPUS), ("corpus",)),
    "validation text": ("other_text", tuple(f"corpus{suffix}" for suffix in VALIDATION), ("validation",)),
    "facts": (
        "other_facts",
        (*(f"exposures{suffix}" for suffix in STORE), "exposures.questions.jsonl"),
        ("exposures",),
    ),
    "templates": (
        "other_templates",
        (*(f"exposures{suffix}" for suffix in STORE), "exposures.questions.jsonl"),
        ("exposures",),
    ),
    "tokenizer": ("other_tokenizer", ("tokenizer.model", "tokenizer.model.meta.json"), ("tokenizer",)),
    "tokenizer with its data": (
        "other_tokenizer",
        (
            "tokenizer.model",
            "tokenizer.model.meta.json",
            *(f"corpus{suffix}" for suffix in (*CORPUS, *VALIDATION)),
            *(f"exposures{suffix}" for suffix in STORE),
            "exposures.questions.jsonl",
        ),
        ("tokenizer", "corpus"),
    ),
}
"""What is replaced: by what of which other data, and the name of the fingerprint that then differs."""


@dataclass(frozen=True)
class Made:
    """Data, two runs on them, and other data."""

    folder: Path
    config: RunConfig
    probed: str
    exported: dict[str, str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_sources: Sources) -> Made:
    folder = tmp_path_factory.mktemp("files")
    settings = DataPrepConfig(
        text=(tiny_sources.text,),
        facts=tiny_sources.triples,
        templates=tiny_sources.templates,
        vocab_size=TINY_VOCABULARY,
        select=SelectConfig(**TINY_SELECTION),
        validation_share=0.05,
    )
    prepare_data(settings, folder / "data")
    templates = yaml.safe_load(tiny_sources.templates.read_text(encoding="utf-8"))
    for splits in templates.values():
        splits["train"] = splits["train"][::-1]
    (folder / "templates.yaml").write_text(yaml.safe_dump(templates), encoding="utf-8")
    lines = tiny_sources.text.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "text.jsonl").write_text("".join(lines[:-60]), encoding="utf-8")
    own = settings.replace(tokenizer=folder / "data" / "tokenizer.model")
    prepare_data(own.replace(text=(folder / "text.jsonl",)), folder / "other_text")
    prepare_data(own.replace(select=settings.select.replace(seed=5)), folder / "other_facts")
    prepare_data(own.replace(templates=folder / "templates.yaml"), folder / "other_templates")
    prepare_data(settings.replace(vocab_size=390), folder / "other_tokenizer")
    config = run_on(folder / "data", folder / "done")
    train(config)
    with pytest.raises(CutOff):
        train(config.model_copy(update={"output": folder / "cut"}), callbacks=[CutCallback])
    main(["export", "hf", str(folder / "done"), "--output", str(folder / "exported")])
    return Made(folder, config, probe(folder / "done", folder / "probe"), hashes(folder / "exported"))


def run_on(data: Path, output: Path) -> RunConfig:
    return parse_config(
        RunConfig,
        {
            "name": "tiny",
            "output": output,
            "device": "cpu",
            "data": {
                "corpus": data / "corpus",
                "validation": data / "corpus.validation",
                "exposures": data / "exposures",
                "tokenizer": data / "tokenizer.model",
            },
            "model": {"layers": 2, "width": 16, "heads": 2},
            "training": {"token_budget": 20 * 8 * 64, "sequence_length": 64, "global_batch_size": 8},
            "infusion": {"frequency": 8, "background": {"frequency": 6}},
            "probes": {"moments": {"shares": [1.0]}, "templates": {"train": 2, "held_out": 1, "question": 1}},
            "checkpoints": {"moments": {"every": 5}, "asynchronous": False},
        },
        source="tiny",
    )


def probe(run: Path, output: Path) -> str:
    """What a probe of the newest checkpoint writes of each question."""
    assert main(["probe", str(run), "--outcomes", f"{output}.npz"]) == 0
    return str(hashes(output.parent)[f"{output.name}.npz"])


@pytest.fixture(params=FILES)
def replaced(request: pytest.FixtureRequest, made: Made, tmp_path: Path) -> tuple[Made, tuple[str, ...]]:
    """The same folders with one file replaced, and the name of what differs now."""
    source, names, differs = FILES[request.param]
    for name in ("data", "done", "cut"):
        shutil.copytree(made.folder / name, tmp_path / name)
    for name in names:
        there = made.folder / source / name
        if there.exists():
            shutil.copyfile(there, tmp_path / "data" / name)
        else:
            (tmp_path / "data" / name).unlink(missing_ok=True)
    return replace(made, folder=tmp_path), differs


def run_yaml(made: Made, output: str) -> str:
    content = run_on(made.folder / "data", made.folder / output).model_dump(mode="json")
    path = made.folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("state", ["done", "cut"])
def test_a_run_is_neither_resumed_nor_reused_on_other_data(
    replaced: tuple[Made, tuple[str, ...]], state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made, differs = replaced
    before = hashes(made.folder / state)
    assert main(["train", run_yaml(made, state)]) == 2
    said = capsys.readouterr().err
    assert any(f"another {name}" in said for name in differs) or "was made with tokenizer" in said, said
    record = read_json(made.folder / state / "run.json", "kis.run/1")
    assert any(str(print_)[:12] in said for print_ in record["fingerprints"].values())
    assert hashes(made.folder / state) == before


def test_other_questions_make_no_other_run_and_one_that_goes_on_is_asked_its_own(made: Made, tmp_path: Path) -> None:
    for name in ("data", "done", "cut"):
        shutil.copytree(made.folder / name, tmp_path / name)
    moved = replace(made, folder=tmp_path)
    questions = tmp_path / "data" / "exposures.questions.jsonl"
    shutil.copyfile(made.folder / "other_facts" / questions.name, questions)
    before = hashes(tmp_path / "done")
    assert main(["train", run_yaml(moved, "done")]) == 0
    assert hashes(tmp_path / "done") == before
    assert main(["train", run_yaml(moved, "cut")]) == 0
    prints = [read_json(tmp_path / name / "run.json", "kis.run/1")["fingerprints"] for name in ("done", "cut")]
    assert prints[0] == prints[1]
    asked = [(tmp_path / name / "inputs" / "questions.jsonl.gz").read_bytes() for name in ("done", "cut")]
    assert asked[0] == asked[1]
    rows = [rows_of(tmp_path / name) for name in ("done", "cut")]
    assert rows[0] == rows[1]


def rows_of(run: Path) -> list[dict[str, object]]:
    """What a run answered, without the time that it took."""
    lines = (run / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def test_probes_and_exports_need_the_run_alone(replaced: tuple[Made, tuple[str, ...]]) -> None:
    made, _ = replaced
    assert probe(made.folder / "done", made.folder / "probe") == made.probed
    assert main(["export", "hf", str(made.folder / "done"), "--output", str(made.folder / "exported")]) == 0
    assert hashes(made.folder / "exported") == made.exported
    assert main(["export", "lm-eval", str(made.folder / "done"), "--output", str(made.folder / "tasks")]) == 0


def test_a_run_folder_alone_is_enough_anywhere(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made.folder / "done", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert probe(Path("moved"), tmp_path / "probe") == made.probed
    assert main(["export", "hf", "moved", "--output", "exported"]) == 0
    assert hashes(Path("exported")) == made.exported
    assert main(["export", "lm-eval", "moved", "--output", "tasks"]) == 0
    assert len(load_runs(tmp_path).runs) == 1


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def kept(run: Path) -> list[Path]:
    return sorted(path for path in (run / "inputs").iterdir() if not path.name.endswith(".meta.json"))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("command", ["probe", "hf", "lm-eval"])
def test_what_a_run_keeps_is_compared_before_it_is_used(
    made: Made, tmp_path: Path, number: int, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made.folder / "done", tmp_path / "run")
    damaged(kept(tmp_path / "run")[number])
    run, output = str(tmp_path / "run"), str(tmp_path / "output")
    arguments: dict[str, list[str]] = {
        "probe": ["probe", run],
        "hf": ["export", "hf", run, "--output", output],
        "lm-eval": ["export", "lm-eval", run, "--output", output],
    }
    assert main(arguments[command]) == 2
    assert "inputs" in capsys.readouterr().err
    assert not Path(output).exists()
