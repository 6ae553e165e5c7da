"""Makes the data steps that are not up to date, and decides which files stay because runs hold them.

New files are made in ``OUTPUT/unfinished`` and put in place together (``preparation.publish``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from megatron_kis.common.errors import InputError, JobError, KisError
from megatron_kis.common.files import atomic_path, locked, sha256_file
from megatron_kis.common.known_files import Seen, Sources
from megatron_kis.common.progress import Progress
from megatron_kis.data_tools.preparation.inputs import StepInputs
from megatron_kis.data_tools.preparation.publish import finish, is_interrupted, move_outputs, publish, unfinished
from megatron_kis.data_tools.preparation.settings import DataPrepConfig
from megatron_kis.data_tools.preparation.stamps import (
    OLDER_FINGERPRINT,
    State,
    Step,
    old_versions,
    read_stamp,
    state_of,
    write_stamp,
)
from megatron_kis.data_tools.preparation.steps import steps_of
from megatron_kis.data_tools.selection.imports import source_files
from megatron_kis.data_tools.tokenizers.registry import model_file

Held = Callable[[str, list[str]], None]
"""Called with a step whose files would be replaced, and with what differs; raises if runs were made with them."""

QUESTIONS = "exposures.questions.jsonl"
"""Name of the file of the questions."""

_ORDER = "exposures.order.jsonl"
_RENDER = "render"
_HOLDER = "preparation of these data"


def seen_in(folder: Path) -> Seen:
    """Returns the known hashes of the files of a folder of data."""
    return Seen(folder / "stamps" / "seen.json")


def rendering_step(settings: DataPrepConfig, output: Path, seen: Seen, progress: Progress) -> Step:
    """Returns the step that makes the questions, on the facts and the tokenizer that are there."""
    inputs = StepInputs(settings, seen, progress)
    for name in ("facts", *([] if settings.tokenizer else ["tokenizer"])):
        inputs.load(name, output)
    return steps_of(settings)[-1](inputs)


@dataclass(slots=True)
class Preparation:
    """One call of ``prepare_data`` or ``prepare_questions``."""

    settings: DataPrepConfig
    output: Path
    progress: Progress
    spare: Path | None
    held: Held | None
    kept: dict[str, list[str]] = field(default_factory=dict)
    """Differences of the steps that stay as they are although versions differ."""
    asked: set[str] = field(default_factory=set)
    """Steps whose files may be replaced."""
    questions: set[str] = field(default_factory=set)
    """Steps of whose files the questions alone are replaced."""

    def is_done(self) -> bool:
        """Returns whether nothing has to be made; calls ``held`` about all that is known to be replaced."""
        seen = seen_in(self.output)
        inputs = StepInputs(self.settings, seen, self.progress)
        states: dict[str, State] = {}
        for describe in steps_of(self.settings):
            step = describe(inputs)
            state = states[step.name] = state_of(step, self.output, seen)
            inputs.load(step.name, self.output if self._stays(step, state, seen) else self._elsewhere(step))
        for name, state in states.items():
            self._ask(name, state)
        done = all(state.fresh or name in self.kept for name, state in states.items())
        if done:
            for name in states:
                self._say_stays(name)
            if os.access(self.output / "stamps", os.W_OK):
                seen.save()
                if unfinished(self.output).exists():  # of other settings
                    with suppress(JobError), locked(self.output / "stamps", _HOLDER):
                        shutil.rmtree(unfinished(self.output))
        return done

    def run(self) -> None:
        """Makes what is not up to date, and puts it in place."""
        with locked(self.output / "stamps", _HOLDER):
            if is_interrupted(self.output):
                finish(self.output)
            self._make_all()

    def make_questions(self) -> None:
        """Makes the questions again if they have changed; the files for training stay as they are.

        Raises:
            InputError: what they would be asked about is missing, or another one.
        """
        with locked(self.output / "stamps", _HOLDER):
            if is_interrupted(self.output):
                finish(self.output)
            seen = seen_in(self.output)
            step = rendering_step(self.settings, self.output, seen, self.progress)
            state = state_of(step, self.output, seen)
            if not (state.fresh or state.asks_alone or (state.only_versions and not state.damage)):
                raise InputError(
                    f"more than the questions has changed ({', '.join(state.reasons(step.name))})",
                    where=str(self.output),
                    remedy="restore what the runs were trained with; kis study run makes missing files again",
                )
            if self._complete(step, seen) != self.output:
                self._keep_order(held=True)
                publish(self.output, [step])
            seen.save()

    def _make_all(self) -> None:
        settings = self.settings
        seen = seen_in(self.output)
        folder = unfinished(self.output)
        given = [model_file(settings.tokenizer)] if settings.tokenizer else []
        sources = Sources(
            [*settings.text, *source_files(settings.facts, settings.facts_format), settings.templates, *given]
        )
        made: list[Step] = []
        inputs = StepInputs(settings, seen, self.progress)
        for describe in steps_of(settings):
            step = describe(inputs)
            place = self._complete(step, seen)
            if place != self.output:
                made.append(step)
            inputs.load(step.name, place)
        sources.check()
        for step in made:
            self._compare(step, seen)
        if made:
            if any(step.name == _RENDER for step in made):
                self._keep_order(held=_RENDER in self.questions or self._holds(_RENDER, []))
            publish(self.output, made)
            for step in made:
                stamp = read_stamp(self.output, step.name)
                for name, entry in (stamp or {"outputs": {}})["outputs"].items():
                    seen.add(self.output / name, entry["sha256"])
        seen.save()
        if folder.exists():
            shutil.rmtree(folder)

    def _complete(self, step: Step, seen: Seen) -> Path:
        """Makes a step unless it is up to date; returns the folder with its outputs, the old one or ``unfinished``."""
        state = state_of(step, self.output, seen)
        if self._stays(step, state, seen):
            self._say_stays(step.name)
            return self.output
        self._ask(step.name, state)
        folder = unfinished(self.output)
        if step.name == _RENDER and state.asks_alone and self._holds(step.name, state.differences):
            self.questions.add(step.name)
        place = None if step.name in self.questions else self._elsewhere(step)
        if place == folder:
            self.progress.say(f"{step.name}: made before")
        elif place is not None:
            move_outputs(step, place, folder)
            self.progress.say(f"{step.name}: taken from {place}")
        else:
            self.progress.say(f"{step.name}: working")
            (folder / "stamps" / f"{step.name}.json").unlink(missing_ok=True)
            step.make(folder)
            if step.name in self.questions:
                self._keep_exposures(step)
            versions = step.recorded(folder).items()  # the encoder
            found = {key: version for key, version in versions if key not in step.key["versions"]}
            write_stamp(step, folder, seen_in(folder), versions=found)
        return folder

    def _elsewhere(self, step: Step) -> Path | None:
        """Returns another folder in which a step is up to date: where it was made before a kill, or the spare one."""
        folders = (unfinished(self.output), self.spare)
        return next((one for one in folders if one is not None and state_of(step, one, seen_in(one)).fresh), None)

    def _stays(self, step: Step, state: State, seen: Seen) -> bool:
        """Returns whether a step stays as it is: it is up to date, or differs in versions only and runs use it."""
        if not (state.fresh or step.name in self.kept or self._keeps(step, state)):
            return False
        if state.old and OLDER_FINGERPRINT not in state.differences and os.access(self.output / "stamps", os.W_OK):
            write_stamp(step, self.output, seen, versions=old_versions(step, self.output))
        return True

    def _keeps(self, step: Step, state: State) -> bool:
        """Returns whether a step stays because runs use it: what differs are versions, or what they are asked."""
        if step.name == _RENDER and state.asks_alone:
            return False  # the questions are made again
        if self.held is None or not (state.known and (state.only_versions or state.asks_alone)) or state.damage:
            return False
        if self._holds(step.name, state.differences):
            self.kept[step.name] = state.differences
            return True
        self.asked.add(step.name)
        return False

    def _holds(self, name: str, differences: list[str]) -> bool:
        """Returns whether something holds the files of a step."""
        if self.held is None:
            return False
        try:
            self.held(name, differences)
        except KisError:
            return True
        return False

    def _ask(self, name: str, state: State) -> None:
        """Asks once whether files may be replaced; with other versions only, the content may come out the same."""
        if self.held is None or name in self.asked or not state.found or not state.differences or state.only_versions:
            return
        if state.asks_alone and (name == _RENDER or self._holds(name, state.differences)):
            return
        self.held(name, state.differences)
        self.asked.add(name)

    def _compare(self, step: Step, seen: Seen) -> None:
        """Asks whether files may be replaced that were not asked about, unless the new ones are the same.

        Descriptions do not count: they contain versions and paths.
        """
        if self.held is None or step.name in self.asked or step.name in self.questions:
            return
        stamp = read_stamp(self.output, step.name)
        recorded = {} if stamp is None else stamp["outputs"]
        others = []
        for name in (name for name in step.outputs if not name.endswith(".meta.json")):
            there = self.output / name
            then = recorded.get(name, {}).get("sha256") or (seen.sha256(there) if there.exists() else None)
            if then is not None and sha256_file(unfinished(self.output) / name) != then:
                others.append(f"{name}: made again, it has another content")
        if others:
            self.held(step.name, others)
            self.asked.add(step.name)

    def _keep_exposures(self, step: Step) -> None:
        """Keeps the present exposures instead of new ones: only the questions of the step are made again."""
        for name in (name for name in step.outputs if name != QUESTIONS):
            again = unfinished(self.output) / name
            again.unlink(missing_ok=True)
            try:
                os.link(self.output / name, again)
            except OSError:  # a file system without links
                shutil.copyfile(self.output / name, again)

    def _keep_order(self, *, held: bool) -> None:
        """Keeps the questions that define the order of the facts, or removes them if there are other facts."""
        order = self.output / _ORDER
        if not held:
            order.unlink(missing_ok=True)
        elif not order.exists() and _RENDER in self.questions:
            with atomic_path(order) as partial:
                shutil.copyfile(self.output / QUESTIONS, partial)

    def _say_stays(self, name: str) -> None:
        if name in self.kept:
            changed = ", ".join(self.kept[name])
            self.progress.say(f"{name}: kept as it is, runs were made with it ({changed})")
        else:
            self.progress.say(f"{name}: up to date")
