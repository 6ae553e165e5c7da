from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_kis.checkpoint.start import START_SCHEMA
from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.training.inputs import open_inputs

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def copied(tiny_data: Path, tmp_path: Path) -> Path:
    """The prepared data, to be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def run_on(tiny_run: MakeRun, folder: Path, **changes: object) -> RunConfig:
    data = {
        "corpus": folder / "corpus",
        "validation": folder / "corpus.validation",
        "exposures": folder / "exposures",
        "tokenizer": folder / "tokenizer.model",
    }
    return tiny_run(data=data, **changes)


def test_inputs_fit_together(tiny_run: MakeRun) -> None:
    config = tiny_run(infusion={"frequency": 5})
    inputs = open_inputs(config)
    assert (inputs.vocabulary, inputs.eod_id, inputs.store.eod_id) == (400, 1, 1)
    assert len(inputs.dataset) == len(inputs.plan) == config.training.steps * config.training.global_batch_size
    assert inputs.plan.infusion_frequency == 5
    assert inputs.plan.background_base_frequency == 6
    assert {question.split for question in inputs.questions.questions} == {"train", "held_out", "question"}
    assert set(inputs.fingerprints) == {"tokenizer", "corpus", "exposures", "validation", "questions"}
    assert len(set(inputs.fingerprints.values())) == 5


def test_a_ratio_becomes_a_frequency(tiny_run: MakeRun) -> None:
    config = tiny_run(infusion={"frequency": None, "ratio": 0.4})
    assert open_inputs(config).plan.infusion_ratio == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model",
        "corpus.bin",
        "corpus.idx",
        "corpus.meta.json",
        "corpus.validation.bin",
        "corpus.validation.idx",
        "corpus.validation.meta.json",
        "exposures.bin",
        "exposures.idx",
        "exposures.json",
        "exposures.questions.jsonl",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_file_is_refused_by_name(tiny_run: MakeRun, copied: Path, name: str, damage: str) -> None:
    path = copied / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])
    with pytest.raises(InputError) as caught:
        open_inputs(run_on(tiny_run, copied))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("stem", ["corpus", "corpus.validation", "exposures", "exposures.questions.jsonl"])
def test_files_of_another_tokenizer_are_refused(tiny_run: MakeRun, copied: Path, stem: str) -> None:
    suffix = {"exposures": ".json", "exposures.questions.jsonl": ""}.get(stem, ".meta.json")
    path = copied / (stem + suffix)
    found = json.loads((copied / "tokenizer.model.meta.json").read_text(encoding="utf-8"))["fingerprint"]
    text = path.read_text(encoding="utf-8")
    assert found in text
    path.write_text(text.replace(found, "0123456789ab" + found[12:]), encoding="utf-8")
    with pytest.raises(InputError, match=rf"{stem}: was made with tokenizer 0123456789ab, the run's is {found[:12]}"):
        open_inputs(run_on(tiny_run, copied))


def test_questions_that_change_make_it_another_run(tiny_run: MakeRun, copied: Path) -> None:
    config = run_on(tiny_run, copied)
    before = open_inputs(config).fingerprints
    path = copied / "exposures.questions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), encoding="utf-8")
    after = open_inputs(config).fingerprints
    assert {name for name in before if before[name] != after[name]} == {"questions"}


def test_an_exposure_longer_than_a_sequence_is_refused(tiny_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"an exposure of town_region/.* tokens, a sequence 16"):
        open_inputs(tiny_run(training={"sequence_length": 16}))


@pytest.mark.parametrize("name", ["tokenizer", "corpus", "validation", "exposures", "questions"])
def test_files_that_have_other_fingerprints_than_asked_for_are_refused(tiny_run: MakeRun, name: str) -> None:
    found = open_inputs(tiny_run()).fingerprints
    assert open_inputs(tiny_run(data={"fingerprints": found})).fingerprints == found
    with pytest.raises(InputError, match=rf"data\.fingerprints\.{name}: is 0{{16}}, and .* has {found[name][:16]} now"):
        open_inputs(tiny_run(data={"fingerprints": {**found, name: "0" * 64}}))


def test_a_fingerprint_of_something_else_is_refused(tiny_run: MakeRun) -> None:
    with pytest.raises(InputError, match=r"'corpse' has no fingerprint; did you mean 'corpus'"):
        tiny_run(data={"fingerprints": {"corpse": "0" * 64}})


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ("data", "corpus", r"nope.meta.json: no such file; a corpus is PREFIX.bin, PREFIX.idx and PREFIX.meta.json"),
        ("data", "validation", r"nope.meta.json: no such file; a corpus is"),
        ("data", "exposures", r"nope.idx: no such file; "),
        ("data", "tokenizer", r"nope: no such file"),
        ("model", "init_from", r"nope.start.json: no such file"),
        ("infusion", "frequencies", r"nope: no such file"),
    ],
)
def test_a_file_that_is_missing_is_named_with_its_key(
    tiny_run: MakeRun, tmp_path: Path, section: str, key: str, said: str
) -> None:
    content = {key: tmp_path / "nope"} | ({"frequency": None} if key == "frequencies" else {})
    with pytest.raises(InputError, match=rf"^{section}\.{key}: .*{said}"):
        open_inputs(tiny_run(**{section: content}))


def test_a_model_of_another_shape_than_its_start_is_named_by_the_key_of_the_shape(
    tiny_run: MakeRun, tmp_path: Path
) -> None:
    shape = {**tiny_run().model.shape().as_dict(), "width": 32}
    content = {"schema": START_SCHEMA, "model": shape, "vocabulary": 512, "files": {}, "max_position_embeddings": None}
    (tmp_path / "start.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"^model\.width: is 16, that of the start 32"):
        open_inputs(tiny_run(model={"init_from": tmp_path}))
