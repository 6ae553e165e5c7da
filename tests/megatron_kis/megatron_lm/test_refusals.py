"""Arguments with which exposures would be lost, or that are not the run: each is refused in one line that names it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_kis.common.errors import InputError
from megatron_kis.config.run import RunConfig
from megatron_kis.megatron_lm import add_arguments
from megatron_kis.megatron_lm.arguments import _refusals, run_of
from megatron_kis.megatron_lm.beyond import ALWAYS, UNUSUAL, flag_of, other_settings
from megatron_kis.megatron_lm.command_line import command_line, in_one_line, script_arguments
from megatron_kis.megatron_lm.provider import check
from megatron_kis.megatron_lm.settings import _corpora
from megatron_kis.run_scripts import pretrain_kis
from tests.megatron_kis.megatron_lm.on_cpu import FLAGS
from tests.pages import ROOT

ALONE = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 64 --global-batch-size 8 --train-iters 20"
    " --lr 1e-3 --vocab-size 400 --kis-output out --kis-exposures {data}/exposures --data-path {data}/corpus"
)


@pytest.fixture
def run_file(tiny_run: Callable[..., RunConfig], tmp_path: Path) -> Path:
    config = tiny_run(training={"precision": "fp32"})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    return path


def parsed(*words: object) -> argparse.Namespace:
    """Megatron-LM's arguments, as they are after the parts of its checks that matter here."""
    arguments = pytest.importorskip(
        "megatron.training.arguments", reason="megatron.training is in megatron-core from 0.19 on (Python 3.12)"
    )
    parser = add_arguments(arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False)))
    args = parser.parse_args([*command_line([str(word) for word in words]), *FLAGS])
    args.padded_vocab_size = -(-(args.vocab_size or 1) // 128) * 128
    args.num_query_groups = args.num_query_groups or args.num_attention_heads
    args.ffn_hidden_size = args.ffn_hidden_size or 4 * args.hidden_size
    args.lr_warmup_iters, args.lr_warmup_samples = args.lr_warmup_iters or 0, args.lr_warmup_samples or 0
    return args


def refused(*words: object) -> str:
    with pytest.raises(InputError) as caught:
        check(parsed(*words))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_arguments_of_a_run_are_the_run(run_file: Path) -> None:
    args = parsed("--kis-run", run_file)
    assert check(args).infusion.frequency == 8
    assert (args.num_layers, args.seq_length, args.train_iters, args.vocab_size) == (2, 64, 20, 400)
    assert (args.eval_interval, args.seed) == (10, 1)
    assert args.make_vocab_size_divisible_by == 128
    shared = parsed("--kis-run", run_file, "--tensor-model-parallel-size", 2)
    assert shared.tensor_model_parallel_size * shared.make_vocab_size_divisible_by == 128  # so that N stays the same


def test_a_run_keeps_heads_biases_norms_and_scaled_wavelengths(run_file: Path) -> None:
    own = {"head_width": 32, "qkv_bias": True, "qk_norm": True, "rope_scaling": 4.0}
    shape = run_file.with_name("shape.yaml")
    content = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    content["model"] = {"layers": 2, "width": 32, "heads": 2, **own}
    shape.write_text(yaml.safe_dump(content), encoding="utf-8")
    args = parsed("--kis-run", shape)
    assert (args.kv_channels, args.add_qkv_bias, args.qk_layernorm) == (32, True, True)
    assert (args.use_rope_scaling, args.rope_scaling_factor) == (True, 4.0)
    check(args)


@pytest.mark.parametrize(
    "words", [("--qk-layernorm", "qk_norm", True), ("--kv-channels 32", "head_width", 32), ("", "head_width", None)]
)
def test_arguments_alone_give_the_shape(tiny_data: Path, words: tuple[str, str, object]) -> None:
    args = parsed(*ALONE.format(data=tiny_data).split(), "--kis-frequency", 5, *words[0].split())
    assert getattr(run_of(args).model, words[1]) == words[2]


@pytest.mark.parametrize(
    ("words", "corpora"),
    [
        (["a", "b"], [1.0, "a", 1.0, "b"]),
        (["0.3", "a", "0.7", "b"], [0.3, "a", 0.7, "b"]),
        (["1", "a", "b"], [1.0, "1", 1.0, "a", 1.0, "b"]),
        (["1", "a", "b", "c"], [1.0, "1", 1.0, "a", 1.0, "b", 1.0, "c"]),
    ],
)
def test_texts_and_their_weights(words: list[str], corpora: list[object]) -> None:
    assert _corpora(argparse.Namespace(train_data_path=None, data_path=words)) == corpora


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--dataloader-type cyclic", "--dataloader-type cyclic: shuffles and drops sequences"),
        ("--dataloader-type external", "--dataloader-type external: may reorder sequences"),
        (
            "--seq-length 32",
            "--seq-length: is 32, and training.sequence_length of the run asks for 64; use --seq-length",
        ),
        ("--global-batch-size 16", "--global-batch-size: is 16, and training.global_batch_size of the run asks for 8"),
        ("--train-iters 25", "--train-iters: trains on 200 sequences, the plan has 160"),
        ("--num-layers 4", "--num-layers: is 4, and model.layers of the run asks for 2"),
        ("--lr 1e-4", "--lr: is 0.0001, and training.optimizer.learning_rate of the run asks for 0.003"),
        ("--bf16", "--bf16: is True, and training.precision of the run asks for False; leave out --bf16"),
        ("--num-experts 8", "--num-experts: is 8, and model of the run asks for none; leave out --num-experts"),
        ("--qk-layernorm", "--qk-layernorm: is True, and model.qk_norm of the run asks for False"),
        ("--kv-channels 64", "--kv-channels: is 64, and model.head_width of the run asks for"),
        ("--optimizer sgd", "--optimizer: is sgd, and training.optimizer of the run asks for adam"),
        ("--lr-decay-iters 5", "--lr-decay-iters: is 5, and training.optimizer.schedule of the run asks for 20"),
        (
            "--full-validation",
            "--full-validation: ends Megatron-LM with a TypeError at its first evaluation of a single validation set",
        ),
        ("--skip-train", "--skip-train: trains on none of the plan's sequences"),
        ("--fp16", "--fp16: skips steps while it looks for a loss scale"),
        ("--rampup-batch-size 4 4 80", "--rampup-batch-size: changes the steps"),
        ("--iterations-to-skip 3", "--iterations-to-skip: skips sequences"),
        ("--use-megatron-fsdp", "--use-megatron-fsdp: shards weights that the probe reads whole"),
        (
            "--vocab-size 100",
            "--vocab-size: gives the embedding 128 rows, and the exposures were made with a tokenizer",
        ),
        ("--data-path x", "--data-path: names general text, and so does data.corpus of"),
        ("--kis-ratio 0.1", "--kis-ratio: cannot be combined with --kis-run"),
        ("--kis-set infusion.frequency=1000000", "infusion.frequency: 16 infused facts x 1e+06 exposures"),
        ("--kis-set documents.reset_attention=true", "documents.reset_attention: is not carried over"),
    ],
)
def test_with_a_run(run_file: Path, words: str, said: str) -> None:
    assert said in refused("--kis-run", run_file, *words.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--kis-frequency: is missing; give it, or --kis-ratio"),
        ("--kis-frequency 5 --kis-ratio 0.1", "--kis-frequency: excludes --kis-ratio"),
        ("--kis-frequency 1000000", "--kis-frequency: 16 infused facts x 1e+06 exposures"),
        ("--kis-ratio 1.5", "--kis-ratio: "),
        ("--kis-frequency 5 --seq-length 8", "--seq-length: an exposure of "),
        ("--kis-frequency 5 --kis-tokenizer nowhere", "nowhere"),
        ("--kis-frequency 5 --kis-set probes.templtes={}", "probes.templtes"),
        (
            "--kis-frequency 5 --kis-set infusion.frequency=7",
            "--kis-set infusion.frequency=7: is given by --kis-frequency; change --kis-frequency",
        ),
        (
            "--kis-frequency 5 --kis-set infusion={frequency:7}",
            "--kis-set infusion={frequency:7}: replaces infusion.frequency, which is given by --kis-frequency; name",
        ),
        ("--kis-frequency 5 --kis-set model.layers=7", "--kis-set model.layers=7: is given by --num-layers"),
        ("--kis-ratio 0.1 --kis-set infusion.background.frequency=-1", "infusion.background.frequency=-1: is -1"),
        ("--kis-frequency 5 --lr -1", "--lr: is -1"),
        ("--kis-frequency 5 --mock-data", "--mock-data: replaces the training data"),
        ("--kis-frequency 5 --ffn-hidden-size -1", "--ffn-hidden-size: is -1"),
    ],
)
def test_without_a_run(tiny_data: Path, words: str, said: str) -> None:
    message = refused(*ALONE.format(data=tiny_data).split(), *words.split())
    assert said in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--kis-exposures: is missing; the exposure plan needs it; give it, or --kis-run RUN.yaml in place"),
        (["--kis-exposures", "x", "--kis-ratio", "0.1"], "--kis-output: is missing; the exposure plan needs it"),
        (["--kis-run", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_without_a_plan(words: list[str], said: str) -> None:
    args: Any = add_arguments(argparse.ArgumentParser()).parse_args(words)
    with pytest.raises(InputError) as caught:
        run_of(args)
    assert said in str(caught.value)


def test_the_script_says_which_megatron_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "megatron.training", None)
    monkeypatch.setattr(sys, "argv", ["pretrain_kis.py", "--kis-exposures", "x"])
    assert pretrain_kis.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("kis: error: this script needs megatron.training of megatron-core 0.19 (")
    assert len(said.splitlines()) == 1


@pytest.fixture
def megatrons() -> argparse.ArgumentParser:
    """A parser as Megatron-LM's: with an argument whose help argparse cannot print."""
    parser = argparse.ArgumentParser("pretrain_kis.py", allow_abbrev=False)
    parser.add_argument("--headroom", type=float, default=1.1, help="headroom (e.g. 1.10 = 10%), default %(default)s")
    return parser


def test_the_help_of_the_script_is_printed(megatrons: argparse.ArgumentParser) -> None:
    printed = script_arguments(megatrons).format_help()
    assert "1.10 = 10%)" in printed
    assert "--kis-run RUN.yaml" in printed
    assert command_line(["--help", "--kis-run", "nowhere.yaml"]) == ["--help", "--kis-run", "nowhere.yaml"]


def test_megatrons_own_help_is_printed() -> None:
    arguments = pytest.importorskip(
        "megatron.training.arguments", reason="megatron.training is in megatron-core from 0.19 on (Python 3.12)"
    )
    parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    assert "--kis-frequency F" in script_arguments(parser).format_help()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--kis-frequncy 5",
            "Megatron-LM's arguments: unrecognized arguments: --kis-frequncy 5; did you mean '--kis-frequency'?",
        ),
        ("--headroom=1 --nothing", "unrecognized arguments: --nothing; pretrain_kis.py --help lists them"),
        ("--headroom x", "argument --headroom: invalid float value: 'x'; pretrain_kis.py --help lists them"),
    ],
)
def test_a_wrong_argument_is_one_line(megatrons: argparse.ArgumentParser, words: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        script_arguments(megatrons).parse_args(words.split())
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError("expected\n  iteration-based training"), "expected iteration-based training"),
        (ValueError("heads"), "heads"),
        (AssertionError(), r"refused by .*test_refusals\.py:\d+, which has `raise error`"),
    ],
)
def test_what_megatron_refuses_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(InputError, match=f"Megatron-LM's arguments: {said}; pretrain_kis"), in_one_line():
        raise error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--window-size 8,0",
            "--window-size: is (8, 0), which no run of this project has; leave",
        ),
        ("--lr-warmup-init 1e-4", "--lr-warmup-init: is 0.0001, which no run"),
        ("--apply-layernorm-1p", "--apply-layernorm-1p: is True, which no run"),
        ("--softmax-type learnable", "--softmax-type: is learnable, which no run"),
    ],
)
def test_a_run_is_trained_with_nothing_that_it_does_not_have(run_file: Path, words: str, said: str) -> None:
    assert said in refused("--kis-run", run_file, *words.split())


def test_what_only_megatron_has_is_in_the_record_where_it_is_unusual(tiny_data: Path) -> None:
    args = parsed(*ALONE.format(data=tiny_data).split(), "--kis-frequency", 5, "--window-size", "8,0")
    usual = parsed(*ALONE.format(data=tiny_data).split(), "--kis-frequency", 5)
    assert other_settings(args) == {**other_settings(usual), "window_size": "(8, 0)"}
    assert set(other_settings(usual)) <= set(ALWAYS)


def test_the_unusual_arguments_are_megatrons_with_its_defaults() -> None:
    arguments = pytest.importorskip(
        "megatron.training.arguments", reason="megatron.training is in megatron-core from 0.19 on (Python 3.12)"
    )
    parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    actions = {action.dest: action for action in parser._actions}
    assert [name for name in UNUSUAL if flag_of(name) not in actions[name].option_strings] == []
    assert {name: actions[name].default for name in UNUSUAL} == UNUSUAL


def test_dtypes_of_megatrons_checks_are_usual() -> None:
    args = argparse.Namespace(exp_avg_dtype=torch.float32, main_params_dtype="fp32", exp_avg_sq_dtype=torch.float16)
    assert other_settings(args) == {"exp_avg_sq_dtype": "torch.float16"}


@pytest.mark.parametrize("words", ["--train-samples 160", "--lr-warmup-samples=8", "--lr-warmup-fraction 0.1"])
def test_a_run_is_described_in_steps(run_file: Path, words: str) -> None:
    flag = words.replace("=", " ").split()[0]
    with pytest.raises(
        InputError, match=rf"{flag}: cannot be combined with --kis-run .*, which gives it in steps; leave"
    ):
        command_line(["--kis-run", str(run_file), *words.split()])


def test_settings_of_several_arguments_count(run_file: Path) -> None:
    words = ["--kis-run", str(run_file), "--kis-set", "infusion.frequency=3", "--kis-set", "training.seed=5"]
    config = run_of(add_arguments(argparse.ArgumentParser()).parse_args(words))
    assert (config.infusion.frequency, config.training.seed) == (3, 5)


def test_a_study_in_place_of_a_run_is_named() -> None:
    study = ROOT / "run_scripts" / "studies" / "quickstart.yaml"
    with pytest.raises(InputError, match=r"quickstart.yaml: is a study, not a run; .* has a config.yaml"):
        run_of(add_arguments(argparse.ArgumentParser()).parse_args(["--kis-run", str(study)]))


def test_a_folder_with_a_complete_run_is_left_alone(run_file: Path, tiny_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "DONE").write_text("{}", encoding="utf-8")
    said = refused("--kis-run", run_file, "--kis-set", f"output={output}")
    assert f"--kis-run {run_file}: output: {output} holds a complete run" in said
    alone = ALONE.format(data=tiny_data).replace("--kis-output out", f"--kis-output {output} --kis-frequency 5")
    assert f"--kis-output: {output} holds a complete run; choose another folder" in refused(*alone.split())


def test_the_page_names_every_argument() -> None:
    page = (ROOT / "docs" / "how-to" / "megatron-lm.md").read_text(encoding="utf-8")
    own = add_arguments(argparse.ArgumentParser(add_help=False))
    flags = {flag for action in own._actions for flag in action.option_strings}
    flags |= {flag.split()[0] for flag, *_ in _refusals(argparse.Namespace())}
    assert [flag for flag in sorted(flags) if f"`{flag}" not in page] == []


@pytest.mark.parametrize("key", ["tokenizer", "validation"])
def test_a_file_of_the_run_that_is_missing_is_named_with_its_key(run_file: Path, key: str) -> None:
    content = yaml.safe_load(run_file.read_text(encoding="utf-8"))
    content["data"][key] = str(run_file.parent / "nope")
    run_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(InputError, match=rf"^data\.{key}: .*nope.*: no such file"):
        command_line(["--kis-run", str(run_file)])
