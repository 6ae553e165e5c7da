from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import read_json, sha256_file, write_json
from megatron_kis.common.identity import settings_of
from megatron_kis.config.recorded import recorded_config
from megatron_kis.config.run import RunConfig
from megatron_kis.training.record import CLOSED, code_fingerprint, config_fingerprint, is_done, mark_done

MakeRun = Callable[..., RunConfig]
FINGERPRINTS = {"corpus": "c" * 64, "questions": "q" * 64}


def closed(config: RunConfig, /, **changes: Any) -> Path:
    """A folder as a complete run of ``config`` leaves it."""
    record = {
        "schema": "kis.run/1",
        "config_fingerprint": config_fingerprint(config),
        "fingerprints": FINGERPRINTS,
        **changes,
    }
    write_json(config.output / "run.json", record)
    for name in CLOSED[1:]:
        (config.output / name).write_text(f"{name}\n")
    mark_done(config.output, {"steps": 20})
    return config.output


def test_a_run_counts_only_with_done(tiny_run: MakeRun) -> None:
    config = tiny_run()
    assert not is_done(config, FINGERPRINTS)
    folder = closed(config)
    assert is_done(config, FINGERPRINTS)
    (folder / "DONE").unlink()
    assert not is_done(config, FINGERPRINTS)


def test_done_holds_the_hashes_of_what_it_closes(tiny_run: MakeRun) -> None:
    folder = closed(tiny_run())
    done = read_json(folder / "DONE", "kis.done/1")
    assert done["files"] == {name: sha256_file(folder / name) for name in CLOSED}
    assert done["steps"] == 20


def test_done_is_not_written_where_a_record_is_missing(tiny_run: MakeRun) -> None:
    folder = closed(tiny_run())
    for name in ("DONE", "probes.jsonl"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=r"probes\.jsonl"):
        mark_done(folder, {})
    assert not (folder / "DONE").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"seed": 1}},
        {"training": {"optimizer": {"learning_rate": 1e-3}}},
        {"infusion": {"frequency": 9}},
        {"infusion": {"background": {"policy": "protected"}}},
        {"model": {"layers": 3}},
        {"probes": {"templates": {"train": 1}}},
        {"validation": {"max_tokens": 640}},
    ],
    ids=str,
)
def test_a_run_of_other_settings_is_refused(tiny_run: MakeRun, changes: dict[str, Any]) -> None:
    closed(tiny_run())
    with pytest.raises(InputError, match=r"runs/tiny: holds a complete run with other settings; choose another output"):
        is_done(tiny_run(**changes), FINGERPRINTS)


@pytest.mark.parametrize(
    "changes", [{"logging": {"every": 1}}, {"study": "other"}, {"data": {"corpus": Path("elsewhere")}}], ids=str
)
def test_what_cannot_change_a_result_does_not_make_another_run(tiny_run: MakeRun, changes: dict[str, Any]) -> None:
    closed(tiny_run())
    assert is_done(tiny_run(**changes), FINGERPRINTS)


def test_a_run_on_other_data_is_refused(tiny_run: MakeRun) -> None:
    config = tiny_run()
    closed(config)
    asked = dict(FINGERPRINTS, questions="0" * 64)
    assert is_done(config, asked)  # other questions make no other run
    for name in (name for name in FINGERPRINTS if name != "questions"):
        with pytest.raises(InputError, match=f"holds a complete run on another {name} .*, now 000000000000"):
            is_done(config, {**FINGERPRINTS, name: "0" * 64})
    with pytest.raises(InputError, match=r"another exposures \(none, now"):
        is_done(config, {**FINGERPRINTS, "exposures": "e" * 64})


def test_a_damaged_record_is_refused(tiny_run: MakeRun) -> None:
    config = tiny_run()
    folder = closed(config)
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json:1: not valid JSON"):
        is_done(config, FINGERPRINTS)


def test_a_record_without_fingerprints_is_refused(tiny_run: MakeRun) -> None:
    config = tiny_run()
    closed(config)
    write_json(config.output / "run.json", {"schema": "kis.run/1"})
    with pytest.raises(InputError, match=r"run\.json: has no 'config_fingerprint'"):
        is_done(config, FINGERPRINTS)


@pytest.mark.parametrize("record", ["settings", "config"])
def test_a_refusal_names_the_settings_that_differ(tiny_run: MakeRun, record: str) -> None:
    config = tiny_run()
    content = config.model_dump(mode="json")
    closed(config, **{record: settings_of(content) if record == "settings" else content})
    other = tiny_run(training={"seed": 1, "optimizer": {"learning_rate": 1e-3}})
    said = r"other settings: training\.seed 0 -> 1, training\.optimizer\.learning_rate 0\.003 -> 0\.001; choose another"
    with pytest.raises(InputError, match=said):
        is_done(other, FINGERPRINTS)


def test_precision_is_compared_as_it_was_resolved(tiny_run: MakeRun) -> None:
    config = tiny_run()
    closed(config, settings=settings_of(config.model_dump(mode="json")), precision="fp32")
    assert is_done(config, FINGERPRINTS, precision="fp32")
    assert is_done(tiny_run(training={"precision": "fp32"}), FINGERPRINTS, precision="fp32")  # which auto was
    with pytest.raises(InputError, match=r"in another precision \(fp32, now bf16\)"):
        is_done(config, FINGERPRINTS, precision="bf16")
    with pytest.raises(InputError, match=r"other settings: training\.precision auto -> bf16"):
        is_done(tiny_run(training={"precision": "bf16"}), FINGERPRINTS, precision="bf16")


def test_data_that_are_no_longer_there_or_asked_for_are_compared(tiny_run: MakeRun) -> None:
    config = tiny_run()
    closed(config, fingerprints={**FINGERPRINTS, "validation": "v" * 64, "start": "s" * 64, "code": "x"})
    with pytest.raises(InputError, match="another validation"):
        is_done(config, {**FINGERPRINTS, "validation": "w" * 64, "start": "s" * 64})
    with pytest.raises(InputError, match=r"another start \(ssssssssssss, now none\)"):
        is_done(config, {**FINGERPRINTS, "validation": "v" * 64})
    asked = tiny_run(data={"fingerprints": {"corpus": "d" * 64}})
    with pytest.raises(InputError, match="another corpus"):
        is_done(asked)


def test_an_older_record_of_a_tokenizer_counts(tiny_run: MakeRun) -> None:
    config = tiny_run()
    closed(config, fingerprints={"tokenizer": "m" * 64})
    assert is_done(config, {"tokenizer": "t" * 64}, model_sha256="m" * 64)
    with pytest.raises(InputError, match="another tokenizer"):
        is_done(config, {"tokenizer": "t" * 64}, model_sha256="n" * 64)


def test_the_code_has_one_fingerprint() -> None:
    assert code_fingerprint.__wrapped__() == code_fingerprint()
    assert len(code_fingerprint()) == 64


@pytest.mark.parametrize("reset", [{}, {"reset_attention": False}])
def test_a_recorded_setting_that_had_no_effect_is_passed_over(tiny_run: MakeRun, reset: dict[str, bool]) -> None:
    config = tiny_run()
    content = {**config.model_dump(mode="json"), "documents": {**reset, "eod_belongs_to": "next"}}
    assert recorded_config({"config": content, "inputs": {}}, config.output) == config
    content["documents"] = {"reset_attention": True, "eod_belongs_to": "next"}
    assert recorded_config({"config": content, "inputs": {}}, config.output).documents.eod_belongs_to == "next"
