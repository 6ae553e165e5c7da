"""The folder of a model of Hugging Face: what can be known about it before its weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_kis.common.errors import InputError
from megatron_kis.common.extras import import_extra
from megatron_kis.common.files import not_a_folder, read_text
from megatron_kis.common.identity import RUN_FILE
from megatron_kis.common.parsing import kind_in_json, parse_json

PURPOSE = "to ask a model of Hugging Face"


def check_model_folder(folder: Path) -> None:
    """Refuses what is not the folder of a causal model that transformers can open without code of the folder's own.

    Raises:
        InputError: no such folder, no ``config.json``, another kind of model, or no safetensors.
    """
    if not folder.is_dir():
        remedy = "give the folder of a model with config.json and *.safetensors; nothing is downloaded"
        raise InputError(not_a_folder(folder), where=str(folder), remedy=remedy)
    path = folder / "config.json"
    if not path.is_file():
        if (folder / RUN_FILE).is_file():
            raise InputError("is the folder of a run", where=str(folder), remedy=f"kis probe {folder}, without --model")
        problem = "has no config.json: it is not the folder of a model"
        raise InputError(problem, where=str(folder), remedy="give the folder that save_pretrained wrote")
    _check_causal(parse_json(read_text(path), where=str(path)), path)
    weight_files(folder)


def _check_causal(config: Any, path: Path) -> None:
    """Refuses a configuration of a model that does not predict the next token, or that is not known.

    Raises:
        InputError: as ``check_model_folder``.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise InputError("has no model_type", where=str(path), remedy="give the configuration of a model")
    known = import_extra("transformers.models.auto.modeling_auto", PURPOSE, extra="export")
    causal: dict[str, Any] = known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    remedy = "give a causal model, one that predicts the next token"
    if kind not in causal:
        if kind in known.MODEL_MAPPING_NAMES:
            raise InputError(f"{kind} models are not causal", where=str(path), remedy=remedy)
        problem = f"this version of transformers does not know model_type {kind!r}"
        if config.get("auto_map"):
            problem = f"model_type {kind!r} needs code from its folder (auto_map), which is not run"
        remedy = "load it in Python, and ask with megatron_kis.huggingface.probe_model"
        raise InputError(problem, where=str(path), remedy=remedy)
    if config.get("is_encoder_decoder"):
        raise InputError("is_encoder_decoder is true", where=str(path), remedy=remedy)
    right = causal[kind] if isinstance(causal[kind], tuple) else (causal[kind],)
    classes = config.get("architectures") or list(right)
    if not isinstance(classes, list):
        problem = f"architectures is {kind_in_json(classes)}"
        raise InputError(problem, where=str(path), remedy=f"a list of names, such as {right[0]}")
    names = list(map(str, classes))
    if not set(names) & set(right):
        problem = f"architectures is {', '.join(names)}; the causal model of {kind} is {right[0]}"
        raise InputError(problem, where=str(path), remedy=remedy)


def weight_files(source: Path) -> list[Path]:
    """Returns the safetensors files of a model's weights.

    Args:
        source: folder of the model.

    Raises:
        InputError: there are none, or a file that the index names is missing.
    """
    found = sorted(source.glob("*.safetensors"))
    index = source / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(map(str, parse_json(read_text(index), where=str(index))["weight_map"].values())))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError("not an index of safetensors files", where=str(index)) from None
        if any(Path(name).name != name for name in names):
            raise InputError("names a file outside its folder", where=str(index))
        for name in names:
            if not (source / name).is_file():
                problem = f"has no {name}, which {index.name} names"
                raise InputError(problem, where=str(source), remedy="fetch or copy the model again")
        return [source / name for name in names]
    if found:
        whole = source / "model.safetensors"  # next to it, some models have the same weights under other names
        return [whole] if whole in found else found
    pickled = any(source.glob("*.bin")) or any(source.glob("*.pt*"))
    problem = "has only pickled weights, which are not read" if pickled else "has no *.safetensors"
    raise InputError(problem, where=str(source), remedy="save it with safe_serialization=True")
