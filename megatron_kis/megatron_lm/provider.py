"""Megatron-LM's ``train_valid_test_datasets_provider``, whose training data follow an exposure plan."""

from __future__ import annotations

import argparse
import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, steadily
from megatron_kis.config.run import RunConfig
from megatron_kis.megatron_lm.arguments import check_arguments, naming_arguments, run_of
from megatron_kis.training.inputs import KEYS, FactInputs, Inputs, InputsOfMany, open_inputs

Datasets = tuple[Any, Any, Any]
Provider = Callable[..., Datasets]


def infused(provider: Provider | None = None) -> Provider:
    """Returns a ``train_valid_test_datasets_provider`` for ``pretrain()``.

    It opens the run that ``--kis-*`` describe, refuses what does not fit, gives Megatron-LM the plan's sequences as its
    training data, and takes part in its loop: it counts the exposures, asks the questions, writes the records.

    Args:
        provider: Megatron-LM's or your own, for validation and test data. Its training data are the general text of a
            run without a file (``--kis-exposures``). With ``--kis-run`` it may be None: the run names all texts.
    """
    opened: list[_Opened] = []  # one for all chunks of layers

    def datasets(samples: Sequence[Any], vp_stage: int | None = None) -> Datasets:
        from megatron.training import get_args

        args = get_args()
        if not opened:
            opened.append(_Opened(args))
        return opened[0].datasets(samples, vp_stage, provider)

    datasets.is_distributed = True  # type: ignore[attr-defined]  # every rank takes part in counting and probing
    return datasets


def check(args: argparse.Namespace) -> RunConfig:
    """Refuses arguments with which the run cannot be trained; opens its files, builds nothing.

    Args:
        args: Megatron-LM's arguments, validated.

    Returns:
        The run's configuration.

    Raises:
        InputError: names the argument, the file or the key.
    """
    config = run_of(args)
    check_arguments(args, config)
    _open(args, config)
    return config


def _open(args: argparse.Namespace, config: RunConfig) -> FactInputs:
    """Opens and checks a run's inputs: all of them where the run names its texts, all but these otherwise."""
    inputs: FactInputs
    with naming_arguments(args):
        if args.kis_run is not None:
            inputs = open_inputs(config)
        else:
            inputs = InputsOfMany(KEYS).open_facts(config, text=_texts(args))
    rows = args.padded_vocab_size
    if rows < inputs.vocabulary:
        raise InputError(
            f"gives the embedding {rows} rows, and the exposures were made with a tokenizer of {inputs.vocabulary}"
            f" tokens ({config.data.tokenizer})",
            where="--vocab-size" if args.vocab_size else "--tokenizer-type",
            remedy="use the tokenizer of the exposures, or render them again with yours",
        )
    if (config.output / "DONE").exists():
        where = "--kis-output" if args.kis_run is None else f"--kis-run {args.kis_run}: output"
        remedy = "choose another folder, or move that run away"
        raise InputError(f"{config.output} holds a complete run", where=where, remedy=remedy)
    return inputs


class _Opened:
    """A run that was opened for ``pretrain()``."""

    def __init__(self, args: argparse.Namespace) -> None:
        from megatron_kis.megatron_lm.session import Session

        self._args = args
        config = run_of(args)
        check_arguments(args, config)
        self._inputs = inputs = _open(args, config)
        epochs = inputs.text.epochs(len(inputs.plan)) if isinstance(inputs, Inputs) else []
        Session(args, config, inputs, epochs).attach()

    def datasets(self, samples: Sequence[Any], vp_stage: int | None, provider: Provider | None) -> Datasets:
        """Returns the datasets of a chunk of layers; None where this rank needs none.

        Args:
            samples: numbers of training, validation and test samples that Megatron-LM asks for; None for a whole epoch.
            vp_stage: number of the chunk, if there are several.
            provider: as in ``infused``.
        """
        from megatron.core.parallel_state import get_tensor_model_parallel_rank

        from megatron_kis.data.dataset import MegatronText
        from megatron_kis.megatron_lm.samples import TrainingSamples, ValidationSamples, needs_data

        inputs, masked = self._inputs, bool(self._args.create_attention_mask_in_dataloader)
        if isinstance(inputs, Inputs):
            if not needs_data():
                return None, None, None
            count = len(inputs.validation) if samples[1] is None else int(samples[1])
            validation = ValidationSamples(inputs.validation, samples=count, attention_mask=masked) if count else None
            return TrainingSamples(inputs.dataset, attention_mask=masked), validation, None
        if provider is None:
            raise InputError(
                "needs general text, and no provider of datasets was given",
                where="--kis-exposures",
                remedy="give infused() the provider of your script, or use --kis-run",
            )
        if not getattr(provider, "is_distributed", False) and get_tensor_model_parallel_rank() != 0:
            return None, None, None  # as Megatron-LM treats such a provider
        staged = vp_stage is not None and "vp_stage" in inspect.signature(provider).parameters
        train, validation, test = provider(samples, vp_stage=vp_stage) if staged else provider(samples)
        if train is None:
            return None, validation, test
        length = inputs.plan.sequence_length
        text = MegatronText(train, sequence_length=length, sequences=len(inputs.plan))
        return TrainingSamples(inputs.dataset_over(text), attention_mask=masked), validation, test


_SKETCH = 1 << 20  # bytes at the beginning and at the end of a file
_PATHS = ("data_path", "train_data_path", "valid_data_path", "data_args_path", "per_split_data_args_path")


def _texts(args: argparse.Namespace) -> dict[str, str]:
    """Returns fingerprints of Megatron-LM's own texts: of sizes and ends, as the files may have terabytes."""
    given = {name: getattr(args, name) for name in _PATHS if getattr(args, name, None)}
    files = [word for value in given.values() for word in (value if isinstance(value, list) else [value])]
    sketches = [_sketch(Path(f"{word}{ending}")) for word in files for ending in ("", ".idx", ".bin")]
    seen = {name: value if not isinstance(value, list) else len(value) for name, value in given.items()}
    content = [sketches, sorted(seen), args.split, args.seed]
    return {"corpus": fingerprint([*content, "train"]), "validation": fingerprint([*content, "valid"])}


def _sketch(path: Path) -> list[Any]:
    def read() -> list[Any]:
        if not path.is_file():
            return [path.name if path.suffix not in (".idx", ".bin") else ""]
        size = path.stat().st_size
        with open(path, "rb") as file:
            begin = file.read(_SKETCH)
            file.seek(max(0, size - _SKETCH))
            return [size, hashlib.sha256(begin + file.read(_SKETCH)).hexdigest()]

    return steadily(read, path)
