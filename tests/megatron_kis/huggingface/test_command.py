"""``kis probe --model``, ``kis data questions`` and ``kis export lm-eval`` without a run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from megatron_kis.analysis import load_curves_csv
from megatron_kis.cli.main import main
from megatron_kis.common.errors import InputError, JobError
from megatron_kis.huggingface import load_model, probe_model
from megatron_kis.huggingface.folder import weight_files
from megatron_kis.probes.scoring import RULES
from tests.megatron_kis.huggingface.conftest import TEXTS, Asked
from tests.megatron_kis.huggingface.models import ROWS, write_model, write_tokenizer

CURVE = ("--model", "model", "--questions", "q", "--curves", "c", "--tokens", "1M")
Printed = pytest.CaptureFixture[str]


def ask(*words: object) -> int:
    return main(["probe", *map(str, words)])


def refused(capsys: Printed, *words: object) -> str:
    """The one line with which a command refuses its input."""
    capsys.readouterr()
    try:
        status = main(list(map(str, words)))
    except SystemExit as ended:
        status = int(str(ended.code))
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, ""), printed
    return printed.err.splitlines()[-1]


def test_a_model_is_asked_from_the_command_line(asked: Asked, tmp_path: Path, capsys: Printed) -> None:
    outcomes = tmp_path / "outcomes.npz"
    assert ask("--model", asked.model, "--questions", asked.questions, "--outcomes", outcomes, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["model"], found["asked"]) == ("kis.probe/1", str(asked.model), 32)
    assert (found["computed"], found["dtype"], found["device"]) == ("prefix trees", "float32", "cpu")
    with np.load(outcomes) as record:
        right = record["correct"][:, RULES.index("statement")]
    rows = [row for row in found["rows"] if row["scoring"] == "statement"]
    assert sum(row["correct"] for row in rows) == right.sum()
    assert [(row["group"], row["split"], row["n"]) for row in rows] == [
        ("control", "train", 8),
        ("control", "held_out", 4),
        ("control", "question", 4),
        ("infused", "train", 8),
        ("infused", "held_out", 4),
        ("infused", "question", 4),
    ]
    assert ask("--model", asked.model, "--questions", asked.questions, "--plain", "--scoring", "sum") == 0
    head, why, first, *table = capsys.readouterr().out.splitlines()
    assert head.endswith("parameters, rule sum; plain rows, float32 on cpu")
    assert why == "each statement by itself: prefix trees were not wanted"
    assert first == "before each statement: <|endoftext|> (bos_token of tokenizer_config.json)"
    assert table[1].split()[:3] == ["control", "train", "8"]


def test_python_gives_the_answers_of_the_command(asked: Asked, capsys: Printed) -> None:
    transformers = pytest.importorskip("transformers")
    assert ask("--model", asked.model, "--questions", asked.questions, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.model)
    model = load_model(asked.model, device="cpu")
    for given in (asked.model, tokenizer):
        record = probe_model(model, given, asked.questions).record()
        assert record["first_tokens"] == [0]
        assert [row | {"seconds": 0} for row in record["rows"]] == [row | {"seconds": 0} for row in rows]
    held_out = probe_model(model, asked.model, asked.questions, templates={"held_out": 1}).rows
    assert {row["split"] for row in held_out} == {"held_out"}


def test_another_tokenizer_cuts_the_statements_again(asked: Asked, tmp_path: Path, capsys: Printed) -> None:
    other = write_tokenizer(tmp_path / "other", TEXTS, vocabulary=270, bos="<s>")
    model = shutil.copytree(asked.model, tmp_path / "model")
    for file in other.iterdir():
        shutil.copy(file, model)
    sources = ["--facts", asked.facts, "--templates", asked.templates]
    words = [*sources, "--tokenizer", model, "--output", tmp_path / "own.jsonl"]
    assert main(["data", "questions", *map(str, words)]) == 0
    assert "before each statement: <s> (bos_token of tokenizer_config.json)" in capsys.readouterr().out
    found = {}
    for questions in (asked.questions, tmp_path / "own.jsonl"):
        assert ask("--model", model, "--questions", questions, "--json") == 0
        found[questions] = json.loads(capsys.readouterr().out)
    again, own = found.values()
    assert again["first_tokens"] == own["first_tokens"] == [1]
    assert [row | {"seconds": 0} for row in again["rows"]] == [row | {"seconds": 0} for row in own["rows"]]
    assert again["questions"]["tokenized again"] != again["questions"]["tokenizer_fingerprint"]
    assert ask("--model", model, "--questions", asked.questions) == 0
    assert "the statements were tokenized again with the tokenizer of the model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "token", "rule"),
    [
        ("frame", "<s>", "what the tokenizer puts before a document"),
        ("bos_token", "<s>", "bos_token of tokenizer_config.json"),
        ("no bos_token", "<|endoftext|>", "eod"),
    ],
)
def test_the_token_before_each_statement_is_that_of_the_tokenizer(
    how: str, token: str, rule: str, asked: Asked, tmp_path: Path, capsys: Printed
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = write_tokenizer(tmp_path, TEXTS, bos="<s>")
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if how == "frame":
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        before = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        tokenizer.post_processor = before
        tokenizer.save(str(path))
    if how == "no bos_token":
        config.write_text(config.read_text().replace('"<s>"', "null"))
    words = ["--facts", asked.facts, "--templates", asked.templates, "--tokenizer", folder]
    assert main(["data", "questions", *map(str, words), "--output", str(tmp_path / "q.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"before each statement: {token} ({rule})"
    header = json.loads((tmp_path / "q.jsonl").read_text().splitlines()[0])
    assert (header["first_tokens"], header["bos"]) == ([int(token == "<s>")], rule)


def test_answers_of_several_models_become_curves(
    asked: Asked, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = tmp_path / "curves.csv"
    words = ["probe", "--model", asked.model, "--questions", asked.questions, "--curves", curves, "--tokens", "1M"]
    for frequency in (0, 20):
        assert main(list(map(str, [*words, "--frequency", frequency]))) == 0
    table = load_curves_csv(curves)
    assert len(table) == 2 * 2 * 3 * len(RULES)
    assert set(table["frequency"]) == {0, 20}
    assert set(table["params"]) == {sum(p.numel() for p in load_model(asked.model).parameters())}
    before = curves.read_bytes()
    monkeypatch.setattr("megatron_kis.huggingface.load.load_model", _not_loaded)
    assert "the same run as line" in refused(capsys, *words, "--frequency", 20)
    assert "do not hold" in refused(capsys, *words[:-1], 1000, "--frequency", 500, "--seed", 1)
    curves.write_bytes(before.replace(b"params", b"parameters", 1))
    assert "curves.csv:1: no column 'params'" in refused(capsys, *words, "--frequency", 40)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "kis probe: nothing to ask; give RUN_DIR, or --model DIR and --questions FILE"),
        (("--model", "model"), "--questions: are missing; make them with kis data questions"),
        (("run", "--model", "model", "--questions", "q"), "RUN_DIR: cannot be combined with --model"),
        (("--model", "model", "--questions", "q", "--step", "5"), "--step: cannot be combined with --model"),
        (
            ("--model", "model", "--questions", "q", "--all-templates"),
            "--all-templates: cannot be combined with --model",
        ),
        (("--model", "model", "--questions", "q", "--probes", "{}"), "--probes: cannot be combined with --model"),
        (("run", "--questions", "q"), "--questions: cannot be combined with a run; use it with --model DIR"),
        (("run", "--dtype", "float32"), "--dtype: cannot be combined with a run"),
        (("run", "--frequency", "0"), "--frequency: cannot be combined with a run"),
        (("--model", "model", "--questions", "q", "--tokens", "5"), "--tokens: needs --curves; add --curves FILE.csv"),
        (("--model", "model", "--questions", "q", "--curves", "c"), "--tokens: is missing"),
        ((*CURVE, "--frequency", "nan"), "--frequency: is nan; 0 or more exposures"),
        ((*CURVE, "--frequency", "-1"), "--frequency: is -1.0"),
        ((*CURVE, "--frequency", "1", "--seed", "-1"), "--seed: is -1"),
        (("--model", "model", "--questions", "q", "--outcomes", "q"), "--outcomes: q is also read"),
        (("--model", "model", "--questions", "q", "--scoring", "summ"), "--scoring: no scoring rule 'summ'"),
        (("--model", "model", "--questions", "q", "--dtype", "fp8"), "--dtype: unknown dtype 'fp8'"),
        (("--model", "model", "--questions", "q", "--device", "tpu"), "--device: unknown device 'tpu'"),
        (("--model", "model", "--questions", "q", "--device", "cuda:7"), "--device: "),
        (("--model", "model", "--questions", "q", "--device-map", "all"), "--device-map: is 'all'"),
        (
            ("--model", "model", "--questions", "q", "--device-map", "auto", "--device", "cpu"),
            "--device: cannot be combined with device_map",
        ),
        (
            ("--model", "model", "--questions", "q", "--batch-tokens", "0"),
            "argument --batch-tokens: '0' is not a count",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_options_are_refused_before_anything_is_read(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "probe", *words)


def break_(asked: Asked, folder: Path, how: str) -> tuple[Path, Path]:
    """Returns a model and questions of which one is damaged."""
    model, questions = folder / "model", folder / "questions.jsonl"
    shutil.copytree(asked.model, model)
    shutil.copy(asked.questions, questions)
    config = json.loads((model / "config.json").read_text())
    header, *rows = questions.read_text(encoding="utf-8").splitlines()
    match how:
        case "no folder":
            shutil.rmtree(model)
        case "no config":
            (model / "config.json").unlink()
        case "a run":
            (model / "config.json").rename(model / "run.json")
        case "pickled":
            (model / "model.safetensors").rename(model / "pytorch_model.bin")
        case "other weights":
            config["num_hidden_layers"] = 3
        case "further weights":
            config["num_hidden_layers"] = 1
        case "weights of another size":
            config["intermediate_size"] = 50
        case "damaged config":
            config["hidden_size"] = "wide"
        case "damaged weights":
            (model / "model.safetensors").write_bytes(b"\x00" * 50)
        case "an encoder":
            config |= {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
        case "no head":
            config["architectures"] = ["LlamaModel"]
        case "no list of heads":
            config["architectures"] = 5
        case "nested heads":
            config["architectures"] = [["LlamaForCausalLM"]]
        case "translates":
            config |= {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
        case "own code":
            config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}
        case "unknown":
            config["model_type"] = "mine"
        case "not JSON":
            pass
        case "no tokenizer":
            (model / "tokenizer.json").unlink()
        case "short":
            config["max_position_embeddings"] = 8
        case "few rows":
            config["vocab_size"] = 200
        case "joined":
            questions.write_text("".join(f"{row}\n" for row in (header, *rows, rows[2])), encoding="utf-8")
        case "no questions file":
            questions.unlink()
        case "no questions":
            questions.write_text(f"{header}\n", encoding="utf-8")
        case "empty":
            questions.write_text("", encoding="utf-8")
        case "facts":
            shutil.copy(asked.facts, questions)
        case "ids only":
            kept = [{k: v for k, v in json.loads(row).items() if k not in ("subject", "sentence")} for row in rows]
            head = json.loads(header) | {"tokenizer_fingerprint": "0" * 64}
            questions.write_text("".join(f"{json.dumps(row)}\n" for row in (head, *kept)), encoding="utf-8")
    if model.exists() and (model / "config.json").exists():
        text = "{" if how == "not JSON" else json.dumps(config)
        (model / "config.json").write_text(text)
    return model, questions


DAMAGE = {
    "no folder": "no such folder; give the folder of a model",
    "no config": "has no config.json: it is not the folder of a model",
    "a run": "is the folder of a run; kis probe",
    "pickled": "has only pickled weights, which are not read",
    "other weights": "lacks 9 tensors of the model, the first model.layers.2.",
    "further weights": "has 9 tensors that the model of config.json does not have, the first model.layers.1.",
    "weights of another size": "has another shape of 6 tensors of the model, the first",
    "damaged config": "hidden_size",
    "damaged weights": "cannot be loaded (",
    "an encoder": "architectures is BertForMaskedLM; the causal model of bert is BertLMHeadModel",
    "no head": "architectures is LlamaModel; the causal model of llama is LlamaForCausalLM",
    "no list of heads": "architectures is a number; a list of names, such as LlamaForCausalLM",
    "nested heads": "architectures is ['LlamaForCausalLM']; the causal model of llama is LlamaForCausalLM",
    "translates": "t5 models are not causal; give a causal model",
    "own code": "model_type 'mine' needs code from its folder (auto_map), which is not run; load it in Python",
    "unknown": "this version of transformers does not know model_type 'mine'",
    "not JSON": "config.json:1",
    "no tokenizer": "has no tokenizer; expected one of tokenizer.json",
    "short": "questions are longer than 8 tokens",
    "few rows": "and the model knows 200; make the questions with the tokenizer of this model",
    "joined": "questions.jsonl: asks twice about fact 'capital/",
    "no questions file": "questions.jsonl",
    "no questions": "has no questions; make them with kis data questions",
    "empty": "not a file of questions",
    "facts": "not a file of questions; make it with kis data render or kis data questions",
    "ids only": "a question for another tokenizer, without subject and sentence; make them with kis data questions",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_wrong_folder_or_file_is_refused(
    how: str, asked: Asked, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, questions = break_(asked, tmp_path, how)
    if "weights" not in how:
        monkeypatch.setattr("megatron_kis.huggingface.load.load_model", _not_loaded)
    line = refused(capsys, "probe", "--model", model, "--questions", questions)
    assert line.startswith("kis: error: ")
    assert DAMAGE[how] in line


def _not_loaded(*_: Any, **__: Any) -> None:
    raise AssertionError("the weights were loaded")


@pytest.mark.parametrize("package", ["transformers", "safetensors"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, "probe", "--model", asked.model, "--questions", asked.questions)
    assert f"{package} is needed to ask a model of Hugging Face; pip install 'megatron-kis[export]'" in line


def test_several_devices_need_accelerate(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="device_map: the package accelerate is not installed"):
        load_model(asked.model, device_map="auto")


def test_accelerate_puts_a_model_on_what_there_is(asked: Asked) -> None:
    pytest.importorskip("accelerate")
    model = load_model(asked.model, device_map="auto")
    found = probe_model(model, asked.model, asked.questions)
    assert found.computed["computed"] == "prefix trees"
    alone = probe_model(load_model(asked.model), asked.model, asked.questions)
    np.testing.assert_allclose(found.result.scores, alone.result.scores, rtol=0, atol=1e-4)


def test_a_model_is_loaded_in_the_type_that_is_asked_for(asked: Asked) -> None:
    assert next(load_model(asked.model, dtype="bfloat16").parameters()).dtype == torch.bfloat16
    assert next(load_model(asked.model).parameters()).dtype == torch.float32


def test_tensors_of_no_layer_of_the_model_do_no_harm(asked: Asked, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    model = shutil.copytree(asked.model, tmp_path / "model")
    tensors = safetensors.load_file(model / "model.safetensors")
    tensors |= {name: torch.zeros(2) for name in ("v_head.weight", "model.layers.0.self_attn.masked_bias")}
    safetensors.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert load_model(model).state_dict().keys() == load_model(asked.model).state_dict().keys()


def test_a_device_without_memory_for_the_model_is_named(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("megatron_kis.huggingface.load.chosen_device", lambda name: torch.device("cpu"))
    model = type(load_model(asked.model))
    monkeypatch.setattr(model, "to", full)
    with pytest.raises(JobError, match="does not fit into memory; use --dtype bfloat16"):
        load_model(asked.model)


def test_an_index_that_names_a_missing_file_is_refused(asked: Asked, tmp_path: Path) -> None:
    model = shutil.copytree(asked.model, tmp_path / "model")
    index = model / "model.safetensors.index.json"
    for name in ("model-00002.safetensors", 5):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(InputError, match=rf"has no {name}, which model\.safetensors\.index\.json names"):
            load_model(model)


def test_questions_need_facts_and_a_tokenizer_that_keeps_them(asked: Asked, tmp_path: Path, capsys: Printed) -> None:
    empty = tmp_path / "facts.jsonl"
    empty.write_text("")
    words = ["data", "questions", "--templates", asked.templates, "--output", tmp_path / "q.jsonl"]
    assert "facts.jsonl: no facts" in refused(capsys, *words, "--facts", empty, "--tokenizer", asked.tokenizer)
    assert "has no tokenizer" in refused(capsys, *words, "--facts", asked.facts, "--tokenizer", tmp_path)
    output = ["--output", asked.facts]
    taken = refused(capsys, *words[:-2], *output, "--facts", asked.facts, "--tokenizer", asked.tokenizer)
    assert "facts.jsonl" in taken
    assert not (tmp_path / "q.jsonl").exists()


def test_relations_without_questions_of_a_split_are_remarked(asked: Asked, tmp_path: Path, capsys: Printed) -> None:
    content = yaml.safe_load(Path(asked.templates).read_text())
    relation, entry = next(iter(content.items()))
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**content, relation: {**entry, "held_out": []}}))
    words = ["--facts", asked.facts, "--templates", tmp_path / "t.yaml", "--tokenizer", asked.tokenizer]
    assert main(["data", "questions", *map(str, words), "--output", str(tmp_path / "q.jsonl")]) == 0
    said = f"remark: {relation}: has no held_out sentences; its facts are in no result of split held_out"
    assert said in capsys.readouterr().out.splitlines()


def test_tasks_are_written_without_a_run(asked: Asked, tmp_path: Path, capsys: Printed) -> None:
    words = [
        "export",
        "lm-eval",
        "--questions",
        asked.questions,
        "--tokenizer",
        asked.model,
        "--output",
        tmp_path / "t",
    ]
    assert main(list(map(str, words))) == 0
    assert "kis_infused_train_statement: 8 questions, 0 left out" in capsys.readouterr().out
    record = json.loads((tmp_path / "t" / "export.json").read_text())
    assert (record["schema"], record["questions"], record["first_tokens"]) == (
        "kis.lm-eval/1",
        str(asked.questions),
        [0],
    )
    again = ["export", "lm-eval", "--output", tmp_path / "u"]
    assert "--questions: is missing, and there is no RUN_DIR" in refused(capsys, *again)
    assert "--tokenizer: is missing" in refused(capsys, *again, "--questions", asked.questions)
    assert "--exposures: cannot be combined with --questions" in refused(
        capsys, *words[:-1], tmp_path / "u", "--exposures", "x"
    )
    said = refused(capsys, *again, "run", "--questions", asked.questions)
    assert "--questions: cannot be combined with RUN_DIR" in said
    assert "the folder is not empty" in refused(capsys, *words)


def test_a_tied_output_layer_counts_once(asked: Asked, tmp_path: Path) -> None:
    model = load_model(write_model(tmp_path / "tied", texts=TEXTS, tie_word_embeddings=True))
    found = probe_model(model, asked.tokenizer, asked.questions)
    untied = probe_model(load_model(asked.model), asked.tokenizer, asked.questions)
    assert untied.parameters - found.parameters == ROWS * 32


def test_weights_under_other_names_next_to_the_model_are_left_alone(tmp_path: Path) -> None:
    for name in ("consolidated.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert len(weight_files(tmp_path)) == 2
