from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from megatron_kis.cli.main import main
from megatron_kis.common.configuration import json_schema, load_config, parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.data import InfusionConfig
from megatron_kis.config.ladder import PRESETS, ModelShape
from megatron_kis.config.run import EvalScheduleConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from megatron_kis.config.study import StudyConfig
from megatron_kis.training.record import result_settings

RUN: dict[str, Any] = {
    "name": "r",
    "output": "out",
    "data": {"corpus": "c", "validation": "v", "exposures": "e", "tokenizer": "t.model"},
    "model": {"layers": 2, "width": 16, "heads": 2},
    "training": {"token_budget": 4096, "sequence_length": 32, "global_batch_size": 4},
    "infusion": {"frequency": 3},
}
STUDY: dict[str, Any] = {
    "name": "s",
    "output": "out",
    "data": {"text": ["text.jsonl"], "facts": "facts.tsv", "templates": "templates.yaml"},
    "ladder": [{"preset": "cpu-32"}, {"preset": "cpu-48"}],
    "token_budgets": [100_000],
    "frequencies": [0, 10],
    "training": {"sequence_length": 32, "global_batch_size": 4},
}


def written(folder: Path, content: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with the value at ``place``, a dotted key, replaced or added."""
    first, _, rest = place.partition(".")
    return {**content, first: changed(content.get(first, {}), rest, value) if rest else value}


def test_a_file_becomes_settings_with_every_default_resolved(tmp_path: Path) -> None:
    config = load_config(RunConfig, written(tmp_path, RUN))
    assert config.training.steps == 32
    assert config.training.optimizer == OptimizerConfig()
    assert config.data.questions == tmp_path / "e.questions.jsonl"  # paths begin at the file's folder
    assert config.infusion.background.policy == "displaced"
    assert parse_config(RunConfig, config.model_dump(mode="json"), source="again") == config


def test_settings_cannot_be_changed_afterwards() -> None:
    config = parse_config(RunConfig, RUN, source="run")
    with pytest.raises(ValueError, match="frozen"):
        config.training.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "content", "place", "near"),
    [
        (RunConfig, RUN, "modle", "did you mean 'model'?"),
        (RunConfig, RUN, "data.tokeniser", "did you mean 'tokenizer'?"),
        (RunConfig, RUN, "training.sequence_lenght", "did you mean 'sequence_length'?"),
        (RunConfig, RUN, "training.optimizer.learning_rat", "did you mean 'learning_rate'?"),
        (RunConfig, RUN, "infusion.background.frequencey", "did you mean 'frequency'?"),
        (RunConfig, RUN, "probes.moments.evry", "did you mean 'every'?"),
        (RunConfig, RUN, "parallel.xyzzy", "valid: context, pipeline, recompute, replicas, sequence, tensor, virtual"),
        (StudyConfig, STUDY, "frequencys", "did you mean 'frequencies'?"),
        (StudyConfig, STUDY, "training.optimizer.beta_1", "did you mean 'beta1'?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_of_its_own_section(
    kind: type[RunConfig], content: dict[str, Any], place: str, near: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(kind, changed(content, place, 1), source="file.yaml")
    assert str(caught.value) == f"file.yaml: {place}: unknown key; {near}"


def test_an_unknown_key_in_a_list_is_refused_with_the_nearest_of_an_entry() -> None:
    ladder = [{"preset": "cpu-32"}, {"preset": "cpu-48", "learning_rat": 1e-3}]
    with pytest.raises(InputError) as caught:
        parse_config(StudyConfig, {**STUDY, "ladder": ladder}, source="study.yaml")
    assert str(caught.value) == "study.yaml: ladder.1.learning_rat: unknown key; did you mean 'learning_rate'?"


def test_an_unknown_split_names_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"probes\.templates\.held-out: unknown key; did you mean 'held_out'\?"):
        parse_config(RunConfig, changed(RUN, "probes", {"templates": {"held-out": 1}}), source="run")


@pytest.mark.parametrize("place", ["name", "data", "data.corpus", "training.token_budget", "infusion"])
def test_a_missing_key_is_named(place: str) -> None:
    content = yaml.safe_load(yaml.safe_dump(RUN))
    section = content
    *path, last = place.split(".")
    for part in path:
        section = section[part]
    del section[last]
    with pytest.raises(InputError) as caught:
        parse_config(RunConfig, content, source="run.yaml")
    assert str(caught.value) == f"run.yaml: {place}: is missing; add it"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("infusion.frequency", -1, "infusion.frequency: is -1; must be at least 0"),
        ("infusion", {"frequency": 1, "ratio": 0.5}, "infusion: needs exactly one of 'frequency', 'frequencies' and"),
        ("infusion", {}, "infusion: needs exactly one of 'frequency', 'frequencies' and 'ratio'"),
        ("infusion", {"ratio": 1.1}, "infusion.ratio: is 1.1; must be at most 1"),
        ("infusion.background", {"policy": "shielded"}, "infusion.background.policy: .*'displaced' or 'protected'"),
        ("infusion.background.frequency", -2, "infusion.background.frequency: is -2; must be at least 0"),
        ("training.token_budget", 0, "training.token_budget: is 0; must be above 0"),
        ("training.token_budget", 100, "training: token_budget 100 is less than one step of 4 x 32 tokens"),
        ("training.token_budget", "many", "training.token_budget: 'many' is not a number"),
        ("training.micro_batch_size", 3, "training: global_batch_size must be a multiple of micro_batch_size"),
        ("training.sequence_length", 1, "training.sequence_length: is 1; must be at least 2"),
        ("training.seed", -1, "training.seed: is -1; must be at least 0"),
        ("training.optimizer.schedule", "linear", "training.optimizer.schedule: .*'cosine' or 'wsd'"),
        ("training.optimizer.warmup_share", 1, "training.optimizer.warmup_share: is 1; must be below 1"),
        ("training.optimizer.learning_rate", 0, "training.optimizer.learning_rate: is 0; must be above 0"),
        ("probes.moments.shares", [0.5, 1.5], "probes.moments.shares.1: is 1.5; must be at most 1"),
        ("probes.templates", {"train": -1}, "probes.templates"),
        ("device", "tpu", "device: .*'auto', 'cpu' or 'cuda'"),
        ("model", {"preset": "7bb"}, "model.preset: no model preset '7bb'; did you mean '7b'?"),
        ("model", [1], "model: is a list; must be a mapping with keys such as preset"),
        ("model", None, "model: is empty; must be a mapping"),
    ],
)
def test_a_wrong_value_is_refused_at_its_key(place: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(RunConfig, changed(RUN, place, value), source="run.yaml")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("frequencies", [0, -1], "frequencies.1: is -1; must be at least 0"),
        ("frequencies", [0, 5, 5], "frequencies: has an entry twice"),
        ("frequencies", [], "frequencies: "),
        ("token_budgets", [0], "token_budgets.0: is 0; must be above 0"),
        ("seeds", [1, 1], "seeds: has an entry twice"),
        ("ladder", [], "ladder: "),
        ("ladder", [{"preset": "cpu-32"}, {"preset": "cpu-32"}], "ladder: has an entry twice"),
        ("ladder", [{"layers": 2}], "ladder.0: needs either 'preset' or all of 'layers', 'width' and 'heads'"),
    ],
)
def test_a_wrong_value_of_a_study_is_refused_at_its_key(place: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(StudyConfig, changed(STUDY, place, value), source="study.yaml")


def test_an_override_replaces_and_adds(tmp_path: Path) -> None:
    overrides = [
        "training.seed=7",
        "training.optimizer.learning_rate=1e-4",
        "infusion={ratio: 0.25}",
        "probes.moments.shares=[0.5]",
        "output=a=b",
        "validation.max_tokens=64",
    ]
    config = load_config(RunConfig, written(tmp_path, RUN), overrides)
    assert (config.training.seed, config.training.optimizer.learning_rate) == (7, 1e-4)
    assert (config.infusion.frequency, config.infusion.ratio) == (None, 0.25)
    assert config.probes.moments.shares == (0.5,)
    assert (config.output, config.validation.max_tokens) == (Path.cwd() / "a=b", 64)  # of the command line: from here
    assert config.training.token_budget == 4096


def test_an_override_names_an_entry_of_a_list_as_errors_do(tmp_path: Path) -> None:
    file = written(tmp_path, yaml.safe_dump(STUDY))
    study = load_config(StudyConfig, file, ["ladder.0.name=small", "data.text.0=other.jsonl"])
    assert study.ladder[0].name == "small"
    assert study.data.text[0] == Path.cwd() / "other.jsonl"  # of the command line: from here
    with pytest.raises(InputError, match=r"^ladder\.7\.name=x: '7' is none of \d entries of a list"):
        load_config(StudyConfig, file, ["ladder.7.name=x"])
    with pytest.raises(InputError, match=r"^ladder\.0\.seeds=x: is 'x'"):
        load_config(StudyConfig, file, ["ladder.0.seeds=x"])


def test_a_check_of_several_keys_names_the_override_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^analysis\.scoring=pmj: 'pmj' is not a scoring rule"):
        load_config(StudyConfig, written(tmp_path, yaml.safe_dump(STUDY)), ["analysis.scoring=pmj"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.seed", "training.seed: is not of the form key=value"),
        ("=3", "=3: is not of the form key=value"),
        ("training.seed=[", r"training\.seed=\[: not valid YAML"),
        ("name.first=3", "name.first=3: 'name' has no keys of its own"),
        ("training.sed=3", "training.sed=3: unknown key; did you mean 'seed'?"),
        ("training.seed=-3", "training.seed=-3: is -3; must be at least 0"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        load_config(RunConfig, written(tmp_path, RUN), [override])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("training.seed=1", "training.seed=2"),
        ("training.seed=1", "training.seed=1"),
        ("training.seed=1", "training={token_budget: 4096}"),
        ("infusion={ratio: 0.25}", "infusion.ratio=0.5"),
        ("probes={moments: {shares: [0.5]}}", "probes.moments={count: 4}"),
    ],
)
def test_an_override_that_replaces_another_is_refused(tmp_path: Path, first: str, second: str) -> None:
    message = re.escape(f"{second}: replaces {first}, which comes before it; keep one of them")
    with pytest.raises(InputError, match=f"^{message}$"):
        load_config(RunConfig, written(tmp_path, RUN), [first, "training.micro_batch_size=1", second])


def test_overrides_of_one_section_add_up(tmp_path: Path) -> None:
    overrides = ["infusion=null", "infusion.ratio=0.25", "infusion.zipf_exponent=0.5"]
    infusion = load_config(RunConfig, written(tmp_path, RUN), overrides).infusion
    assert (infusion.frequency, infusion.ratio, infusion.zipf_exponent) == (None, 0.25, 0.5)


def test_invalid_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "name: r\ntraining:\n  seed: [1\nmodel: {}\n")
    with pytest.raises(InputError, match=r"run\.yaml:[34]: not valid YAML"):
        load_config(RunConfig, path)


@pytest.mark.parametrize(
    ("text", "problem"), [("", "is empty"), ("# none\n", "is empty"), ("- 1\n", "is a list"), ("text\n", "is 'text'")]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    remedy = "must be a mapping with keys such as name, study, output, device"
    with pytest.raises(InputError, match=rf"run\.yaml: {problem}; {remedy}$"):
        load_config(RunConfig, written(tmp_path, text), ["training.seed=1"])
    with pytest.raises(InputError, match=r"run\.yaml: not valid YAML"):
        load_config(RunConfig, written(tmp_path, "\x01"))


def test_a_missing_or_undecodable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml: no such file$"):
        load_config(RunConfig, tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml: not UTF-8 \(byte 9\)"):
        load_config(RunConfig, tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-32", "UTF-32"), ("utf-32-be", "UTF-32BE")],
)
def test_a_file_in_a_wider_encoding_is_refused_with_the_way_to_convert_it(
    tmp_path: Path, encoding: str, named: str
) -> None:
    (tmp_path / "wide.yaml").write_bytes("name: cafe\n".encode(encoding))
    with pytest.raises(
        InputError, match=rf"wide\.yaml: is {named}\b.*, not UTF-8; convert it: iconv -f {named} -t UTF-8"
    ):
        load_config(RunConfig, tmp_path / "wide.yaml")


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    path = written(tmp_path, "name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(RunConfig, path)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"layers": 2, "width": 16},
        {"preset": "cpu-32", "layers": 2},
        {"preset": "cpu-32", "width": 16},
        {"preset": "cpu-32", "query_groups": 1},
        {"preset": "cpu-32", "ffn_width": 64},
        {"preset": "cpu-32", "tied_embeddings": False},
        {"preset": "cpu-32", "rope_base": 500},
    ],
    ids=str,
)
def test_a_model_is_a_preset_or_a_shape_and_nothing_is_ignored(shape: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="model"):
        parse_config(RunConfig, changed(RUN, "model", shape), source="run")


def test_a_preset_is_its_shape() -> None:
    for name, shape in PRESETS.items():
        config = ModelConfig(preset=name, init_std=0.01, transformer_impl="local")
        assert config.shape() == shape
        assert config.label == name
    assert ModelConfig(preset="cpu-32", name="slow").label == "slow"


def test_an_explicit_shape_fills_what_is_left_out() -> None:
    config = ModelConfig(layers=3, width=48, heads=4)
    assert config.label == "3x48"
    assert config.shape() == ModelShape(layers=3, width=48, heads=4, query_groups=4, ffn_width=128)
    full = ModelConfig(
        layers=3, width=48, heads=4, query_groups=2, ffn_width=100, tied_embeddings=False, rope_base=500, name="mine"
    )
    assert full.label == "mine"
    assert full.shape() == ModelShape(3, 48, 4, 2, 100, tied_embeddings=False, rope_base=500)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"layers": 0, "width": 16, "heads": 2}, "model.layers: is 0; must be at least 1"),
        ({"layers": 2, "width": 16, "heads": 3}, "model.heads: width 16 over 3 heads"),
        ({"layers": 2, "width": 6, "heads": 2}, "model.heads: width 6 over 2 heads"),  # odd heads cannot rotate
        ({"layers": 2, "width": 16, "heads": 4, "query_groups": 3}, "model.query_groups: 4 heads cannot share 3"),
        ({"layers": 2, "width": 16, "heads": 4, "query_groups": 0}, "model.query_groups"),
        ({"layers": 2, "width": 16, "heads": 4, "ffn_width": 0}, "model.ffn_width"),
    ],
)
def test_an_impossible_shape_is_refused(shape: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config(RunConfig, changed(RUN, "model", shape), source="run").model.shape()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=5), st.none() | st.integers(1, 40), st.integers(1, 200))
def test_moments_lie_in_the_run_and_include_its_end(shares: list[float], every: int | None, last: int) -> None:
    steps = EvalScheduleConfig(shares=tuple(shares), every=every).steps(last)
    assert last in steps
    assert all(0 <= step <= last for step in steps)
    assert all(min(abs(step - share * last) for step in steps) <= 0.5 for share in shares)
    if every:
        assert set(range(every, last + 1, every)) <= steps


def test_moments_are_steps() -> None:
    assert EvalScheduleConfig(shares=(0.0, 0.5), every=40).steps(100) == {0, 40, 50, 80, 100}


def test_moments_by_tokens_are_the_steps_that_reach_them() -> None:
    moments = EvalScheduleConfig(shares=(), tokens=(0, 1, 512, 513, 51_200, 51_201))
    assert moments.steps(100, step_tokens=512) == {0, 1, 2, 100}


def test_a_setting_that_came_later_counts_only_where_it_is_not_at_its_default() -> None:
    plain, named = (
        parse_config(RunConfig, content, source="run")
        for content in (RUN, changed(RUN, "probes", {"moments": {"tokens": [7]}}))
    )
    assert not {"norm_epsilon", "head_width", "qkv_bias", "qk_norm"} & {*result_settings(plain)["model"]}
    assert "qkv_bias" not in ModelConfig(layers=1, width=16, heads=2).shape().as_dict()
    assert ModelConfig(layers=1, width=16, heads=2, qkv_bias=True).shape().as_dict()["qkv_bias"] is True
    assert "tokens" not in result_settings(plain)["probes"]["moments"]
    assert result_settings(named)["probes"]["moments"]["tokens"] == [7]


def test_a_budget_is_rounded_down_to_whole_steps() -> None:
    assert TrainingConfig(token_budget=32 * 4 * 5 + 127, sequence_length=32, global_batch_size=4).steps == 5


def test_frequency_zero_is_a_frequency() -> None:
    assert InfusionConfig(frequency=0).frequency == 0


def fields_without_a_docstring(kind: type[BaseModel], seen: set[type]) -> list[str]:
    if kind in seen:
        return []
    seen.add(kind)
    missing = [f"{kind.__name__}.{name}" for name, field in kind.model_fields.items() if not field.description]
    for info in kind.model_fields.values():
        for part in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                missing += fields_without_a_docstring(part, seen)
    return missing


@pytest.mark.parametrize("kind", [RunConfig, StudyConfig])
def test_every_setting_is_documented(kind: type[BaseModel]) -> None:
    assert fields_without_a_docstring(kind, set()) == []


def test_paths_of_a_section_begin_at_the_file(tmp_path: Path) -> None:
    study = load_config(StudyConfig, written(tmp_path, STUDY), ["data.facts=here.tsv"])
    assert study.data.text == (tmp_path / "text.jsonl",)
    assert study.data.facts.resolve() == Path("here.tsv").resolve()
    assert study.data.select.infused == 100


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("data.txet", 1, "study.yaml: data.txet: unknown key; did you mean 'text'?"),
        ("data.select.infusd", 1, "study.yaml: data.select.infusd: unknown key; did you mean 'infused'?"),
        ("data.select.infused", "many", "study.yaml: data.select.infused: "),
        ("data.select", 3, "study.yaml: data.select: "),
        ("data.select.relations", [3], "study.yaml: data.select.relations.0: "),
        ("data.text", 3, "study.yaml: data.text: "),
        ("data", {"text": [], "templates": "t.yaml"}, "study.yaml: data.facts: is missing; add it"),
        ("analysis.tolerence", 1, "study.yaml: analysis.tolerence: unknown key; did you mean 'tolerance'?"),
        ("analysis.r", 1.5, "study.yaml: analysis.r: is 1.5; must be below 1"),
        (
            "analysis.criterion",
            "hing",
            "study.yaml: analysis.criterion: 'hing' is not a criterion; did you mean 'hinge'?",
        ),
    ],
)
def test_the_data_and_analysis_of_a_study_are_read_as_strictly_as_its_other_sections(
    place: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(StudyConfig, changed(STUDY, place, value), source="study.yaml")
    assert str(caught.value).startswith(message)


def mismatches(content: Any, schema: dict[str, Any], whole: dict[str, Any], place: str = "") -> list[str]:
    """Where a content is not as a JSON Schema has it, by the keywords that pydantic writes."""
    if "$ref" in schema:
        return mismatches(content, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, place)
    if "anyOf" in schema:
        found = [mismatches(content, arm, whole, place) for arm in schema["anyOf"]]
        if [] not in found:
            return found[0]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema and not isinstance(content, kinds[schema["type"]]):
        return [f"{place}: {content!r} is no {schema['type']}"]
    if "enum" in schema and content not in schema["enum"]:
        return [f"{place}: {content!r} is none of {schema['enum']}"]
    lowest = schema.get("exclusiveMinimum", float("-inf"))
    if isinstance(content, int | float) and not lowest < content:
        return [f"{place}: {content!r} is not larger than {lowest}"]
    found = []
    if isinstance(content, dict) and "properties" in schema:
        found += [f"{place}.{key}: missing" for key in schema.get("required", ()) if key not in content]
        for key, value in content.items():
            if key in schema["properties"]:
                found += mismatches(value, schema["properties"][key], whole, f"{place}.{key}")
            elif schema.get("additionalProperties") is False:
                found.append(f"{place}.{key}: unknown")
    if isinstance(content, list) and "items" in schema:
        for index, item in enumerate(content):
            found += mismatches(item, schema["items"], whole, f"{place}.{index}")
    return found


EXAMPLES = [*sorted((Path(__file__).parents[2] / "run_scripts").glob("*/*.yaml"))]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_files_we_ship_are_as_the_schema_for_editors_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = "study" if path.parent.name == "studies" else "run"
    assert main(["schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert mismatches(content, schema, schema) == []
    assert mismatches({**content, "nmae": 1}, schema, schema) == [".nmae: unknown"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("token_budgets", [0]),
        ("analysis.criterion", "hing"),
        ("analysis.alpha", 0),
        ("data.select.infusd", 3),
        ("data.select.spread", "evenly"),
        ("ladder", [{"preset": 3}]),
        ("training.global_batch_size", "many"),
        ("cluster.small.launcher", "srun"),
    ],
)
def test_the_schema_marks_mistakes(place: str, value: Any) -> None:
    schema = json_schema(StudyConfig)
    assert mismatches(changed(STUDY, place, value), schema, schema) != []
    assert mismatches(changed(STUDY, "token_budgets", ["1.2e6", "7b", 1.5e6, 4]), schema, schema) == []
