"""What the analysis of a study will need, checked before anything is trained.

What makes an analysis impossible is an error; what makes it weak is a remark, with the key and what to change. Levels,
sizes and the law are looked at in ``analysis.design``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_kis.checkpoint.start import check_start_tokenizer, open_start
from megatron_kis.common.errors import InputError, first_of
from megatron_kis.common.terms import BACKGROUND, CONTROL, INFUSED, TRAIN
from megatron_kis.config.study import StudyConfig
from megatron_kis.config.training import check_precision
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.readers.files import expand
from megatron_kis.data_tools.rendering.templates import Templates, load_templates
from megatron_kis.data_tools.tokenizers.base import Tokenizer
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.study.specs import RunSpec, expand_grid
from megatron_kis.study.written import naming_keys

_SHOWN = 4  # relations or cells listed in a message


@dataclass(frozen=True)
class Remark:
    """Something that makes a study weak."""

    key: str
    """Key of the study file that decides it."""

    problem: str
    """What is weak, in one clause."""

    change: str
    """What to change, with numbers."""

    def __str__(self) -> str:
        """Returns the remark as one line."""
        return f"{self.key}: {self.problem}; {self.change}"

    def record(self) -> dict[str, str]:
        """Returns it for JSON."""
        return asdict(self)


Relations = Mapping[str, Mapping[str, int]]
"""Facts of each relation, by group; a count of 0 is one that is not known yet."""


def relations_of_facts(path: Path) -> Relations:
    """Returns the facts of each relation by group, from a study's ``facts.jsonl``."""
    found: dict[str, Counter[str]] = {INFUSED: Counter(), BACKGROUND: Counter()}
    for fact in load_facts(path):
        found.setdefault(fact.group, Counter())[fact.relation] += 1
    return found


def _check_text(study: StudyConfig) -> None:
    """Refuses text among what the study itself writes, such as a pattern of names that its own files match."""
    try:
        files = expand(study.data.text)
    except InputError:
        return  # the preparation of the data reports what is wrong with them
    written = [(study.output / name).resolve() for name in ("data", "runs")]
    for path in files:
        if any(path.resolve().is_relative_to(folder) for folder in written):
            problem = f"{path} is in the folder that the study writes"
            raise InputError(problem, where="data.text", remedy="name the files of the text alone")


def _check_starts(study: StudyConfig) -> None:
    """Refuses a size that is not its start's, or sequences that are longer than its positions, before data are made."""
    checked = set()
    compared: set[Path] = set()  # starts that have the study's tokenizer
    tokenizer: Tokenizer | None = None
    for spec in expand_grid(study):
        model = spec.entry
        if model.init_from is None or model.label in checked:
            continue
        checked.add(model.label)
        with naming_keys(study, spec):
            start = open_start(model.init_from, model.shape(), longest=study.training.sequence_length)
            if (path := study.data.tokenizer) is not None and model.init_from not in compared:
                tokenizer = tokenizer or load_tokenizer(path)
                check_start_tokenizer(start, tokenizer, path)
                compared.add(model.init_from)


def check_device(study: StudyConfig, *, here: bool = False) -> None:
    """Refuses what the device of the runs cannot train: each of them would fail with the same message.

    Args:
        study: the study.
        here: whether the runs are executed on this machine; what its device ``auto`` is on another one is not known.

    Raises:
        InputError: ``cuda`` where there is none, or a precision or layers that need it.
    """
    layers = {number: entry.transformer_impl for number, entry in enumerate(study.ladder)}
    precision, device = study.training.precision, study.device
    needs_cuda = [number for number, asked in layers.items() if asked == "transformer_engine"]
    cpu = device == "cpu"
    if here and not cpu and (needs_cuda or precision in ("bf16", "fp8") or device == "cuda"):
        import torch  # seconds, which only these studies wait

        from megatron_kis.distributed.device import check_device as check_here

        check_here(device)
        cpu = not torch.cuda.is_available()
    if not cpu:
        return
    check_precision(precision, cpu=True)
    if precision == "fp8":
        problem = "is fp8, which needs CUDA; the device is a CPU"
        raise InputError(problem, where="training.precision", remedy="use auto or fp32")
    if needs_cuda:
        where = f"ladder.{needs_cuda[0]}.transformer_impl"
        raise InputError("is transformer_engine, which needs CUDA; the device is a CPU", where=where, remedy="use auto")


def check_study(study: StudyConfig, relations: Relations | None = None) -> list[Remark]:
    """Checks that a study can be analysed as it declares; reads its templates alone.

    Args:
        study: the study.
        relations: facts of each relation by group (``relations_of_facts``); None before they are chosen.

    Returns:
        Remarks on what makes the analysis weak.

    Raises:
        InputError: what makes it impossible.
    """
    study.logging.check_packages()
    _check_text(study)
    check_device(study)
    _check_starts(study)
    try:
        templates = load_templates(study.data.templates)
    except InputError:
        return _doses(study)  # the preparation of the data reports what is wrong with them
    return [*check_sentences(study, templates, relations), *_doses(study)]


def check_sentences(study: StudyConfig, templates: Templates, relations: Relations | None) -> list[Remark]:
    """Checks that infused and background facts can be asked about in the split that is analysed.

    Args:
        study: the study.
        templates: its templates.
        relations: as ``check_study``.

    Returns:
        Remarks on facts that are asked less, or not at all.

    Raises:
        InputError: no relation has sentences to ask with.
    """
    split, scoring = study.analysis.split, study.analysis.scoring
    found = []
    for group, count in study.data.select.counts().items():
        if not count or group == CONTROL:
            continue
        known = (relations or {}).get(group) or dict.fromkeys(study.data.select.relations_of(group), 0)
        names = [name for name in known or templates if name in templates]
        lacking = [name for name in names if not _asked(templates, name, split, scoring)]
        if names and len(lacking) == len(names):
            raise InputError(
                f"no relation of the {group} facts has a {_wanted(split, scoring)}: {first_of(lacking, _SHOWN)}",
                where=f"{study.data.templates}: {split}",
                remedy=f"add some to each relation, or change analysis.{'scoring' if scoring == 'pmi' else 'split'} "
                f"({split}, {scoring})",
            )
        if lacking and known:
            facts, every = sum(known[name] for name in lacking), sum(known.values())
            said = f"; {facts:,} of {every:,} {group} facts are in no result" if facts else ""
            found.append(
                Remark(
                    f"{study.data.templates}: {lacking[0]}.{split}",
                    f"{first_of(lacking, _SHOWN)} ha{'s' if len(lacking) == 1 else 've'} no "
                    f"{_wanted(split, scoring)}{said}",
                    "add some before training: later ones make other questions",
                )
            )
    found += _fewer_than_asked(study, templates, relations)
    return list(dict.fromkeys(found))


def _asked(templates: Templates, relation: str, split: str, scoring: str) -> bool:
    sentences = templates[relation].split(split)
    # pmi compares an answer with itself where nothing comes before it.
    return any(scoring != "pmi" or not sentence.startswith("[Y]") for sentence in sentences)


def _wanted(split: str, scoring: str) -> str:
    before = " with words before the object, which scoring pmi needs" if scoring == "pmi" else ""
    return f"{split} sentence{before}"


def _fewer_than_asked(study: StudyConfig, templates: Templates, relations: Relations | None) -> list[Remark]:
    """Returns the remark that a probe asks for more sentences than a relation has."""
    named = {name for group in (relations or {}).values() for name in group}
    named |= set(study.data.select.relations_of_all_groups())
    found = []
    for split, most in study.probes.templates.items():
        counts = {name: len(templates[name].split(split)) for name in sorted(named) if name in templates}
        fewer = {name: count for name, count in counts.items() if most and 0 < count < most}
        if most and fewer and split != TRAIN:
            name, count = min(fewer.items(), key=lambda item: item[1])
            problem = f"asks for {most}, and {name} has {count}"
            found.append(Remark(f"probes.templates.{split}", problem, f"add sentences, or write {count}"))
    return found


def _doses(study: StudyConfig) -> list[Remark]:
    """Returns remarks on missing comparisons: runs without infusion, and facts that could be lost."""
    specs = expand_grid(study)
    found = [*_baseline(study, specs)]
    shown = study.background.frequency or sum(group.facts for group in study.background.groups)
    if not study.data.select.background or not shown:
        key = "background.frequency" if study.data.select.background else "data.select.background"
        found.append(
            Remark(
                key,
                "is 0: no background fact is shown, so there is nothing that a model could lose",
                "show each 300 times, say, or ask for the onset and the loss alone",
            )
        )
    if not any(spec.dose.infuses for spec in specs):
        found.append(Remark("frequencies", "has only 0: nothing is infused", "add frequencies above 0"))
    if not study.data.select.control:
        found.append(
            Remark(
                "data.select.control",
                "is 0: without facts that are never shown, nothing shows how often guesses are right",
                "take as many as infused ones",
            )
        )
    return found


def _baseline(study: StudyConfig, specs: Sequence[RunSpec]) -> Iterable[Remark]:
    """Returns the models that are not trained without infusion."""
    models = dict.fromkeys((spec.entry.label, spec.tokens) for spec in specs)
    have = {(spec.entry.label, spec.tokens) for spec in specs if not spec.dose.infuses}
    lacking = [f"{label} at {tokens:,} tokens" for label, tokens in models if (label, tokens) not in have]
    if not lacking:
        return
    key = "frequencies" if study.frequencies or not study.infusion_ratios else "infusion_ratios"
    key = "facts" if any(spec.dose.facts for spec in specs) and not study.frequencies else key
    which = "no model is" if len(lacking) == len(models) else f"{first_of(lacking, _SHOWN)} "
    which += "" if len(lacking) == len(models) else "is not" if len(lacking) == 1 else "are not"
    problem = (
        f"{which} trained without infusion: what it knew before, and the loss that a tolerance begins from, are unknown"
    )
    if study.analysis.criterion == "general_loss":
        raise InputError(problem, where=key, remedy="add 0")
    yield Remark(key, problem, "add 0")
