"""The identity of a result, which tells it from others: the settings and the data that it was made with.

Every stage uses one definition. A run's identity is its result settings (everything in its configuration that can
change a result, ``settings_of``) and the fingerprints of its data. It is written into ``run.json`` and every
checkpoint; ``study.json`` says which identities belong to a study; nothing is resumed, reused, exported or analysed as
something else. What a run is asked is not part of its identity: it can be asked again (``asked``).
``docs/identity.md`` is the map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from megatron_kis.common.files import fingerprint

RESULTLESS = (
    "name",
    "study",
    "output",
    "device",
    "data",
    "parallel",
    "extends",
    "trunk",
    "infusion.frequencies",
    "checkpoints",
    "logging",
    "model.name",
    "model.transformer_impl",
    "model.init_from",
    "training.micro_batch_size",
    "training.deterministic",
    "training.guard.hang_minutes",
    "probes.batch_size",
)
"""Settings of a run that change no result, or nothing but the order of sums: the layout, the device, the size of
batches; and files, which count by their content."""

CELL = ("training.token_budget", "training.seed", "infusion.facts", "infusion.frequency", "infusion.ratio")
"""Settings in which the runs of one study differ by design, next to their model; a ratio is another way to give F."""

ASKED = ("probes",)
"""Settings of what a run is asked, and when: the results say them, and no run is another for them."""

OF_THE_SIZE = ("model", "training.optimizer.learning_rate")
"""Settings that a size of the ladder may have of its own."""

_LATER: dict[str, Any] = {
    "documents.eod_belongs_to": "previous",
    "infusion.background.groups": [],
    "infusion.background.schedule": "uniform",
    "infusion.begins": None,
    "infusion.facts": None,
    "model.head_width": None,
    "model.norm_epsilon": 1e-5,
    "model.qk_norm": False,
    "model.qkv_bias": False,
    "model.rope_scaling": None,
    "probes.facts_per_group": None,
    "probes.moments.tokens": [],
    "validation.moments.tokens": [],
}
"""Settings that came later, with the value that older versions worked by. They count where they have another value, so
that older checkpoints are resumed and older runs stay in their study."""

_EOD_KEY = "documents.eod_belongs_to"

RUN_FILE, RUN_SCHEMA = "run.json", "kis.run/1"
CHECKPOINT_FILE, CHECKPOINT_SCHEMA = "checkpoint.json", "kis.checkpoint/1"
STUDY_FILE, STUDY_SCHEMA = "study.json", "kis.study/1"
"""The records in which identities are written down, and their schemas."""

DATA = ("tokenizer", "corpus", "validation", "exposures", "questions")
"""Names of the fingerprints of a run's data."""

QUESTIONS = "questions"
"""The one of them that says what a run was asked, and not what it was trained on."""

ORDER = "order"
"""Next to those of ``DATA``, of runs that show some of the facts: in which order these are taken. Older records do not
have it."""

OLDER_TOKENIZER = "tokenizer_model"
"""Next to those of ``DATA``: what records of older versions have as the fingerprint of the same tokenizer (the hash of
its model file alone), where that is another one."""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run that can change a result, nested as in its configuration.

    Args:
        config: the whole configuration as JSON has it (``run.json``: ``config``).
    """
    kept: dict[str, Any] = {}
    apart = (config.get("documents") or {}).get("reset_attention")
    for key, value in leaves(config):
        if within(key, RESULTLESS) or (key in _LATER and value == _LATER[key]):
            continue
        if key == _EOD_KEY and not apart:  # documents see each other, whichever the token belongs to
            continue
        *path, last = key.split(".")
        section = kept
        for part in path:
            section = section.setdefault(part, {})
        section[last] = "by the tokenizer" if key == _EOD_KEY and value is None else value
    return kept


def settings_fingerprint(config: Mapping[str, Any]) -> str:
    """Returns the fingerprint of the settings that can change a result."""
    return fingerprint(settings_of(config))


def leaves(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted keys and values of nested mappings; an empty mapping is a value."""
    for key, value in content.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, here)
        else:
            yield here, value


@lru_cache(maxsize=4096)
def within(key: str, sections: tuple[str, ...]) -> bool:
    """Returns whether a dotted key is one of these, or is within one of them."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> list[str]:
    """Returns ``key then -> now`` of each leaf that differs.

    Args:
        then: nested settings.
        now: others.
        but: keys and sections that may differ.
    """
    before, after = dict(leaves(then)), dict(leaves(now))
    return [
        f"{key} {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in {**before, **after}
        if before.get(key) != after.get(key) and not within(key, but)
    ]


def changed_data(then: Mapping[str, Any], now: Mapping[str, Any], *, model_sha256: str | None = None) -> list[str]:
    """Returns the names of the fingerprints that differ: those of ``DATA`` first, in that order.

    Questions are not compared, and an order of facts only where both records have one.

    Args:
        then: fingerprints by name, as a record has them.
        now: others.
        model_sha256: of the tokenizer's model file, which is what an older record has as the tokenizer's fingerprint.
    """
    named = dict.fromkeys((*DATA, *then, *now))
    names = [name for name in named if name != QUESTIONS and then.get(name) != now.get(name)]
    if not (then.get(ORDER) and now.get(ORDER)):
        names = [name for name in names if name != ORDER]
    older = model_sha256 is not None and then.get("tokenizer") == model_sha256
    return [name for name in names if not (older and name == "tokenizer")]


def data_differences(then: Mapping[str, Any], now: Mapping[str, Any], *, model_sha256: str | None = None) -> list[str]:
    """Returns ``name then -> now`` of each differing fingerprint, shortened; the arguments are ``changed_data``'s."""
    names = sorted(changed_data(then, now, model_sha256=model_sha256))
    return [f"{name} {short(then.get(name))} -> {short(now.get(name))}" for name in names]


def short(fingerprint: Any) -> str:
    """Returns a fingerprint for people: its first 12 letters; ``none`` where there is none."""
    return "none" if fingerprint is None else str(fingerprint)[:12]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
