"""A study's data are what settings and sources say: each change is named, what runs hold is not written over."""

import importlib.metadata
import json
import os
import shutil
from dataclasses import asdict

import pytest
import yaml

from megatron_kis.common.errors import InputError
from megatron_kis.common.files import fingerprint, sha256_file
from megatron_kis.common.known_files import Seen, Sources
from megatron_kis.common.progress import LineProgress
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.preparation import prepare, publish, stamps, work
from megatron_kis.data_tools.preparation import steps as prepare_steps
from megatron_kis.data_tools.preparation.prepare import (
    DataPrepConfig,
    fact_names,
    other_questions,
    outdated,
    prepare_data,
    prepare_questions,
    stale,
)
from megatron_kis.data_tools.readers.documents import iter_documents
from megatron_kis.data_tools.rendering.templates import load_templates
from megatron_kis.data_tools.selection.imports import source_files, source_fingerprint
from megatron_kis.data_tools.selection.select import SelectConfig
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer
from megatron_kis.data_tools.tokenizers.training import TokenizerConfig, train_tokenizer

from .conftest import LEADS, TEMPLATES, TRIPLES


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Sources in a folder of their own, and the data made from them."""
    folder = tmp_path_factory.mktemp("prepared")
    for path in (LEADS, TRIPLES, TEMPLATES):
        shutil.copy(path, folder / path.name)
    settings = DataPrepConfig(
        text=(folder / LEADS.name,),
        facts=folder / TRIPLES.name,
        templates=folder / TEMPLATES.name,
        vocab_size=400,
        validation_share=0.3,
        select=SelectConfig(infused=8, background=8, control=8),
    )
    prepare_data(settings, folder / "data")
    return settings


@pytest.fixture
def settings(prepared, tmp_path):
    """The same in a folder that may be changed; times of change stay."""
    source = prepared.facts.parent
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    moved = {name: tmp_path / getattr(prepared, name).name for name in ("facts", "templates")}
    return prepared.replace(text=(tmp_path / LEADS.name,), **moved)


@pytest.fixture
def data(settings):
    return settings.facts.parent / "data"


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "t.json"
    train_tokenizer(
        (document.text for document in iter_documents([LEADS])), path, TokenizerConfig(vocab_size=420, kind="byte-bpe")
    )
    return path


def run(settings, data, **options):
    """What was said."""
    lines = []
    prepare_data(settings, data, progress=LineProgress(lines.append), **options)
    return lines


def worked(lines):
    return [line.removesuffix(": working") for line in lines if line.endswith(": working")]


def contents(folder):
    """What runs read; descriptions name paths and versions."""
    paths = [path for path in folder.iterdir() if path.is_file() and not path.name.endswith(".meta.json")]
    return {path.name: sha256_file(path) for path in paths}


class Runs:
    """Refuses, as where runs were made with the data, and remembers what it was told."""

    def __init__(self):
        self.told = []

    def __call__(self, step, changed):
        self.told.append((step, changed))
        raise InputError(f"runs hold {step}: {', '.join(changed)}")


def mutated(settings, name, other_tokenizer):
    """The settings with another value of a key, and how the difference begins."""
    folder = settings.facts.parent
    if name in ("text", "facts", "templates"):
        path = folder / getattr(settings, name).name if name != "text" else settings.text[0]
        old, new = {
            "text": ("the", "eht"),
            "facts": ("Argentina", "Anitnegra"),
            "templates": ("climbers go", "people go"),
        }[name]
        content = path.read_text(encoding="utf-8")
        assert old in content
        path.write_text(content.replace(old, new), encoding="utf-8")
        return settings, f"data.{name}: "
    values = {
        "facts_format": "csv",
        "facts_columns": ("subject=1", "relation=2", "object=3"),
        "text_key": "body",
        "text_format": "txt",
        "tokenizer": other_tokenizer,
        "vocab_size": 390,
        "tokenizer_model": "bpe",
        "character_coverage": 0.99,
        "select.infused": 9,
        "select.background": 7,
        "select.control": 7,
        "select.relations": ("peak_country",),
        "select.infused_relations": ("peak_country",),
        "select.background_relations": ("peak_country",),
        "select.control_relations": ("peak_country",),
        "select.permute_objects": True,
        "select.distractors": 2,
        "select.facts_per_object": 2,
        "select.longest_name": 40,
        "select.keep_telling_names": True,
        "select.seed": 1,
        "select.spread": "proportional",
        "select.memory_limit": 1000,
        "validation_share": 0.2,
        "seed": 1,
    }
    head, _, tail = name.partition(".")
    value = values[name]
    change = {head: settings.select.replace(**{tail: value})} if tail else {head: value}
    return settings.replace(**change), f"data.{name} " if name != "tokenizer" else "data.tokenizer: fingerprint "


KEYS = [name for name in DataPrepConfig.model_fields if name != "select"]
KEYS += [f"select.{name}" for name in SelectConfig.model_fields]


@pytest.mark.parametrize("name", KEYS)
def test_every_key_that_changes_is_named_alone_and_refused_where_runs_hold_the_data(
    settings, data, other_tokenizer, name
):
    """A key that is added to the settings fails here until it has an entry in ``mutated``."""
    assert stale(settings, data) == []
    changed, beginning = mutated(settings, name, other_tokenizer)
    before = contents(data)
    found = stale(changed, data)
    assert len(found) == 1
    assert found[0].startswith(beginning)
    runs = Runs()
    if name == "select.distractors":  # of the questions alone: below
        assert outdated(changed, data).questions == found
        return
    assert outdated(changed, data).questions == []
    with pytest.raises(InputError, match="runs hold"):
        prepare_data(changed, data, held=runs)
    assert runs.told[0][1] == found
    assert contents(data) == before


def with_templates(settings, **splits):
    """The settings with other sentences of some splits of each relation."""
    path = settings.templates.with_name("other.yaml")
    content = yaml.safe_load(settings.templates.read_text(encoding="utf-8"))
    for own in content.values():
        own.update(splits)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return settings.replace(templates=path)


def of_questions(settings, what):
    if what == "distractors":
        return settings.replace(select=settings.select.replace(distractors=2))
    return with_templates(settings, **{what: ["Whoever names [X] thinks of [Y]."]})


QUESTIONS = ["held_out", "question", "distractors"]


@pytest.mark.parametrize("what", QUESTIONS)
@pytest.mark.parametrize("how", ["all", "alone"])
def test_questions_alone_are_made_again_while_runs_hold_the_data_and_the_first_ones_tell_the_order(
    settings, data, what, how
):
    before = contents(data)
    changed = of_questions(settings, what)
    assert outdated(changed, data).questions == stale(changed, data) != []
    assert other_questions(changed, data) != []
    for _ in range(2):  # the second time nothing is left to do
        if how == "all":
            run(changed, data, held=Runs())
        else:
            settings.text[0].unlink(missing_ok=True)  # only the templates are read
            prepare_questions(changed, data)
        now = contents(data)
        assert now.pop("exposures.order.jsonl") == before["exposures.questions.jsonl"]
        assert {name for name in before if now[name] != before[name]} == {"exposures.questions.jsonl"}
        assert other_questions(changed, data) == []
    prepare_questions(settings, data)
    assert contents(data) == before | {"exposures.order.jsonl": before["exposures.questions.jsonl"]}


def test_the_order_of_the_facts_stays_while_runs_hold_the_data(settings, data):
    changed = of_questions(settings, "held_out")
    prepare_questions(changed, data)
    before = contents(data)
    (data / "exposures.bin").write_bytes(b"")
    run(changed, data, held=Runs())
    assert contents(data) == before


@pytest.mark.parametrize("what", ["question", "distractors", "train"])
def test_what_nobody_holds_is_made_as_if_it_were_the_first_time(settings, data, tmp_path, what):
    prepare_questions(of_questions(settings, "held_out"), data)
    changed = of_questions(settings, what)
    run(changed, data)
    prepare_data(changed, tmp_path / "fresh")
    assert contents(data) == contents(tmp_path / "fresh")


def test_questions_of_other_train_templates_are_those_of_another_training(settings, data):
    before = contents(data)
    changed = with_templates(settings, train=["[X], [Y]."], held_out=["[Y] of [X]."])
    assert outdated(changed, data).questions == other_questions(changed, data) == []
    for make in (lambda: prepare_data(changed, data, held=Runs()), lambda: prepare_questions(changed, data)):
        with pytest.raises(InputError, match=r"data\.templates: "):
            make()
        assert contents(data) == before


@pytest.mark.parametrize("what", [*QUESTIONS, "train"])
def test_a_stamp_that_does_not_say_what_was_shown_is_compared_by_the_exposures(settings, data, what):
    path = data / "stamps" / "render.json"
    stamp = json.loads(path.read_text())
    del stamp["labels"]["train_templates"]
    stamp["fingerprint"] = fingerprint([stamp["key"], stamp["labels"]])
    path.write_text(json.dumps(stamp))
    assert stale(settings, data) == []
    assert bool(other_questions(of_questions(settings, what), data)) == (what != "train")


def test_where_the_data_are_not_there_no_questions_can_be_asked(settings, data):
    (data / "facts.jsonl").unlink()
    assert other_questions(of_questions(settings, "held_out"), data) == []
    with pytest.raises(InputError, match=r"facts.jsonl"):
        prepare_questions(of_questions(settings, "held_out"), data)


@pytest.mark.parametrize("name", ["text", "templates", "validation_share", "seed", "select.distractors", "tokenizer"])
def test_what_is_made_again_after_a_change_is_what_is_made_afresh(settings, data, tmp_path, other_tokenizer, name):
    changed, _ = mutated(settings, name, other_tokenizer)
    assert worked(run(changed, data))
    assert stale(changed, data) == []
    prepare_data(changed, tmp_path / "fresh")
    fresh = contents(tmp_path / "fresh")
    assert {name: content for name, content in contents(data).items() if name in fresh} == fresh


def test_settings_that_are_not_used_change_nothing(settings, data, other_tokenizer):
    given = settings.replace(tokenizer=other_tokenizer)
    run(given, data)
    assert stale(given.replace(vocab_size=1, tokenizer_model="bpe", character_coverage=2.0), data) == []


def test_a_usual_character_coverage_is_in_no_key_so_that_older_data_stay_as_they_are(settings, data):
    key = json.loads((data / "stamps" / "tokenizer.json").read_text())["key"]
    assert "character_coverage" not in key["data"]
    of_bytes = settings.replace(tokenizer_model="byte-bpe")
    before, after = stale(of_bytes, data), stale(of_bytes.replace(character_coverage=0.99), data)
    assert before == after  # byte-bpe has a piece for every byte


def test_names_and_places_of_sources_do_not_count_but_kinds_do(settings, data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    text = (tmp_path / "elsewhere" / "renamed.jsonl",)
    shutil.copy(settings.text[0], text[0])
    shutil.copy(settings.facts, tmp_path / "elsewhere" / "other.tsv")
    moved = settings.replace(text=text, facts=tmp_path / "elsewhere" / "other.tsv")
    assert stale(moved, data) == []
    (tmp_path / "elsewhere" / "renamed.txt").write_bytes(text[0].read_bytes())
    other_kind = settings.replace(text=(tmp_path / "elsewhere" / "renamed.txt",))
    (found,) = stale(other_kind, data)
    assert found.startswith("data.text: ")
    assert found.endswith(f"{LEADS.name} -> {other_kind.text[0]}")


def test_files_that_come_go_or_change_places_are_named(settings, data, tmp_path):
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "One more."}\n')
    both = settings.replace(text=(*settings.text, more))
    assert stale(both, data) == [f"data.text: {more} added"]
    run(both, data)
    assert stale(settings, data) == [f"data.text: without {more}"]
    assert stale(both.replace(text=both.text[::-1]), data) == ["data.text: other order of the files"]


def test_a_relation_is_the_name_of_its_file_where_the_format_has_it_so(tmp_path):
    rows = [{"sub_label": f"Peak {chr(65 + n)}q", "obj_label": f"Land {chr(75 + n)}"} for n in range(8)]
    (tmp_path / "P17.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataPrepConfig(
        text=(LEADS,),
        facts=tmp_path / "P17.jsonl",
        facts_format="lama",
        templates=tmp_path / "t.yaml",
        vocab_size=400,
        select=SelectConfig(infused=4, background=0, control=0, keep_telling_names=True),
    )
    for name in ("P17", "P18"):
        text = "".join(
            f"{one}: {{train: ['[X] is in [Y].'], held_out: ['In [Y] is [X].']}}\n" for one in ("P17", "P18")
        )
        (tmp_path / "t.yaml").write_text(text)
        if name == "P17":
            prepare_data(settings, tmp_path / "data")
    (tmp_path / "P17.jsonl").rename(tmp_path / "P18.jsonl")
    renamed = settings.replace(facts=tmp_path / "P18.jsonl")
    assert stale(renamed, tmp_path / "data") == [f"data.facts: {settings.facts} -> {renamed.facts}"]


def test_a_source_changed_in_place_to_the_same_size_and_date_is_noticed(settings, data):
    path = settings.text[0]
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"the", b"eht"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stale(settings, data) == [f"data.text: {path}: content changed"]


FOLDERS = {
    "bear": (["P17.jsonl", "P36.jsonl", "metadata_relations.json"], ["README.md", "metadata.json"]),
    "lama": (["P17.jsonl", "P36.jsonl"], ["relations.jsonl", "README.md"]),
    "trex": (["re-nlg_0-10000.json", "re-nlg_10000-20000.json"], ["README.md", "P17.jsonl"]),
    "wikidata5m": (["w_entity.txt", "w_relation.txt", "w_test.txt", "w_train.txt"], ["w_text.txt", "readme.txt"]),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_only_the_files_that_a_format_reads_count(tmp_path, kind):
    read, stray = FOLDERS[kind]
    for name in read:
        (tmp_path / name).write_text(name)
    before = source_fingerprint(tmp_path, kind)
    for name in (*stray, ".DS_Store"):
        (tmp_path / name).write_text("stray")
    assert [path.name for path in source_files(tmp_path, kind)] == read
    assert source_fingerprint(tmp_path, kind) == before
    for name in read:
        (tmp_path / name).write_text("changed")
        changed = source_fingerprint(tmp_path, kind)
        assert changed != before
        before = changed


def test_a_stray_file_in_a_folder_of_facts_changes_nothing(tmp_path):
    folder = tmp_path / "bear"
    folder.mkdir()
    rows = [{"sub_label": f"Peak {chr(65 + n)}q", "obj_label": f"Land {chr(75 + n)}"} for n in range(8)]
    (folder / "P17.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.yaml").write_text("P17: {train: ['[X] is in [Y].'], held_out: ['In [Y] is [X].']}\n")
    settings = DataPrepConfig(
        text=(LEADS,),
        facts=folder,
        facts_format="bear",
        templates=tmp_path / "t.yaml",
        vocab_size=400,
        select=SelectConfig(infused=4, background=0, control=0, keep_telling_names=True),
    )
    prepare_data(settings, tmp_path / "data")
    for name in (".DS_Store", "README.md"):
        (folder / name).write_text("stray")
    assert stale(settings, tmp_path / "data") == []
    (folder / "metadata_relations.json").write_text('{"P17": {}}')
    assert stale(settings, tmp_path / "data") == [f"data.facts: {folder / 'metadata_relations.json'} added"]


@pytest.mark.usefixtures("twins")
def test_a_link_turned_to_another_file_of_the_same_size_and_times_is_noticed(settings, data, tmp_path):
    old, new, link = settings.text[0], tmp_path / "new.jsonl", tmp_path / "link.jsonl"
    new.write_bytes(old.read_bytes().replace(b"the", b"eht"))
    link.symlink_to(old)
    linked = settings.replace(text=(link,))
    seen, sources = Seen(tmp_path / "stamps" / "seen.json"), Sources([link])
    assert seen.sha256(link) == sha256_file(old)
    seen.save()
    run(linked, data)
    assert stale(linked, data) == []
    link.unlink()
    link.symlink_to(new)
    with pytest.raises(InputError, match="changed while it was read"):
        sources.check()
    assert Seen(tmp_path / "stamps" / "seen.json").sha256(link) == sha256_file(new)
    (found,) = stale(linked, data)
    assert found.startswith("data.text: ")


STEPS = ["facts", "tokenizer", "corpus", "render"]
OUTPUTS = ["facts.jsonl", "tokenizer.model", "corpus.bin", "corpus.validation.idx", "exposures.questions.jsonl"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_changed_in_place_to_the_same_size_and_date_is_made_again(settings, data, name):
    prepare_data(settings, data)  # whatever is remembered of the files, is remembered now
    before = contents(data)
    status = (data / name).stat()
    content = bytearray((data / name).read_bytes())
    content[len(content) // 2] ^= 1
    (data / name).write_bytes(content)
    os.utime(data / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert stale(settings, data) == [f"{name}: changed since it was made"]
    assert worked(run(settings, data, held=Runs()))  # they come out as they were: nobody has to be asked
    assert contents(data) == before


def test_files_are_not_hashed_again_while_their_status_is_the_same(settings, data, monkeypatch):
    prepare_data(settings, data)
    hashed = []
    monkeypatch.setattr(
        "megatron_kis.common.known_files.sha256_file", lambda path: hashed.append(path) or sha256_file(path)
    )
    assert stale(settings, data) == []
    assert run(settings, data) == [f"{step}: up to date" for step in STEPS]
    assert hashed == []
    os.utime(data / "corpus.bin")
    assert stale(settings, data) == []
    assert hashed == [data / "corpus.bin"]


def test_stale_writes_nothing(settings, data, tmp_path):
    assert stale(settings, tmp_path / "new") == [
        f"{step}: not made yet" for step in ("facts", "tokenizer", "corpus", "render")
    ]
    assert not (tmp_path / "new").exists()
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    stale(settings.replace(seed=9), data)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_data_without_stamps_stay_where_they_come_out_the_same(settings, data):
    before = contents(data)
    shutil.rmtree(data / "stamps")
    assert stale(settings, data)[0] == "facts: it is not known what was used to make it"
    run(settings, data, held=Runs())
    assert contents(data) == before
    shutil.rmtree(data / "stamps")
    runs = Runs()
    with pytest.raises(InputError, match="runs hold"):
        prepare_data(settings.replace(seed=1), data, held=runs)
    assert contents(data) == before
    assert runs.told[0][0] == "corpus"
    assert "corpus.bin: made again, it has another content" in runs.told[0][1]


def test_a_deleted_file_and_other_settings_do_not_write_over_what_runs_hold(settings, data):
    (data / "corpus.bin").unlink()
    runs = Runs()
    with pytest.raises(InputError, match=r"data\.validation_share"):
        prepare_data(settings.replace(validation_share=0.2), data, held=runs)
    run(settings, data, held=runs)
    assert stale(settings, data) == []


def other_versions(monkeypatch):
    """As after an upgrade of the tokenizer's library."""
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99.0" if name == "sentencepiece" else version(name)
    )


def test_another_version_is_named_and_makes_the_data_again(settings, data, monkeypatch):
    other_versions(monkeypatch)
    (found,) = stale(settings, data)
    assert found.startswith("versions.sentencepiece ")
    assert found.endswith("-> 99.0")
    assert worked(run(settings, data)) == ["tokenizer", "corpus", "render"]
    assert stale(settings, data) == []


def test_other_versions_alone_do_not_end_a_study(settings, data, monkeypatch):
    before = contents(data)
    other_versions(monkeypatch)
    lines = run(settings, data, held=Runs())
    assert not worked(lines)
    assert any(line.startswith("corpus: kept as it is, runs were made with it (versions.") for line in lines)
    assert contents(data) == before
    with pytest.raises(InputError, match=r"data\.seed 0 -> 1"):
        prepare_data(settings.replace(seed=1), data, held=Runs())


def test_another_version_and_a_missing_file_do_not_write_over_what_runs_hold(settings, data, monkeypatch):
    (data / "corpus.bin").unlink()
    other_versions(monkeypatch)
    before = contents(data)
    lines = run(settings, data, held=Runs())
    assert "corpus" in worked(lines)
    found = contents(data)
    assert {name: found[name] for name in before} == before


def test_other_code_is_a_version_too(settings, data, monkeypatch):
    number = prepare_steps.CODE["render"]
    monkeypatch.setitem(prepare_steps.CODE, "render", "99")
    assert stale(settings, data) == [f"versions.code {number} -> 99"]
    assert worked(run(settings, data, held=Runs())) == []
    assert worked(run(settings, data)) == ["render"]


def test_a_gigatoken_that_comes_or_goes_changes_the_encoder(settings, data, other_tokenizer, monkeypatch):
    given = settings.replace(tokenizer=other_tokenizer)
    run(given, data)
    monkeypatch.setitem(__import__("sys").modules, "gigatoken", None)
    (found,) = stale(given, data)
    assert found.startswith("versions.encoder gigatoken ")
    assert "-> tokenizers " in found


def test_a_given_tokenizer_that_changes_is_named_with_both_fingerprints(settings, data, other_tokenizer, tmp_path):
    path = tmp_path / "mine.json"
    content = json.loads(other_tokenizer.read_text(encoding="utf-8"))
    content["added_tokens"].append({**content["added_tokens"][0], "id": 420, "content": "</s>"})
    path.write_text(json.dumps(content), encoding="utf-8")
    given = settings.replace(tokenizer=path)
    before = load_tokenizer(path).fingerprint
    assert prepare_data(given, data).tokenizer == path
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    after = load_tokenizer(path).fingerprint
    assert stale(given, data) == [f"data.tokenizer: fingerprint {before[:12]} -> {after[:12]}"]
    assert worked(run(given, data)) == ["corpus", "render"]
    assert "data.tokenizer: given -> trained here" in stale(settings.replace(vocab_size=380), data)


def test_a_spare_folder_gives_what_is_up_to_date_there(settings, data, tmp_path):
    changed = settings.replace(validation_share=0.2)
    prepare_data(changed, tmp_path / "spare")
    expected = contents(tmp_path / "spare")
    lines = run(changed, data, spare=tmp_path / "spare")
    assert not worked(lines)
    assert f"corpus: taken from {tmp_path / 'spare'}" in lines
    assert contents(data) == expected
    assert stale(changed, data) == []
    assert "corpus: not made yet" in stale(changed, tmp_path / "spare")


def test_a_spare_folder_of_other_settings_gives_nothing(settings, data, tmp_path):
    prepare_data(settings.replace(seed=5), tmp_path / "spare")
    assert worked(run(settings.replace(seed=6), data, spare=tmp_path / "spare")) == ["tokenizer", "corpus", "render"]


def test_a_mistake_in_a_later_step_leaves_the_data_as_they_were(settings, data, monkeypatch):
    before = contents(data)

    def failing(*_, **__):
        raise InputError("too few objects")

    with monkeypatch.context() as patch:
        patch.setattr(work, "render", failing)
        with pytest.raises(InputError, match="too few objects"):
            run(settings.replace(seed=1), data)
    assert contents(data) == before
    assert stale(settings, data) == []
    lines = run(settings.replace(seed=1), data)
    assert "corpus: made before" in lines
    assert worked(lines) == ["render"]
    assert not (data / "unfinished").exists()


@pytest.mark.parametrize("moves", range(0, 12, 2))
def test_killed_while_files_are_put_in_place_the_next_command_ends_it(settings, data, monkeypatch, tmp_path, moves):
    """Killed before the first move, or after any number of them."""
    changed = settings.replace(validation_share=0)
    prepare_data(changed, tmp_path / "fresh")
    replace_, count = publish.Path.replace, [0]

    def failing(self, target):
        if self.parent.name == "unfinished" and not self.name.startswith("."):
            if count[0] == moves:
                raise KeyboardInterrupt
            count[0] += 1
        return replace_(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(publish.Path, "replace", failing)
        try:
            run(changed, data)
        except KeyboardInterrupt:
            assert (data / "unfinished" / "publish.json").exists()
    assert worked(run(changed, data)) == []
    assert contents(data) == contents(tmp_path / "fresh")
    assert not (data / "corpus.validation.bin").exists()
    assert not (data / "unfinished").exists()


def test_a_source_that_changes_meanwhile_is_refused(settings, data, monkeypatch):
    make = work.render

    def changing(*arguments, **options):
        settings.text[0].write_bytes(settings.text[0].read_bytes() + b"\n")
        return make(*arguments, **options)

    monkeypatch.setattr(work, "render", changing)
    before = contents(data)
    with pytest.raises(InputError, match="changed while it was read"):
        run(settings.replace(seed=1), data)
    assert contents(data) == before


def with_old_stamps(settings, data):
    """Replaces the stamps by those that version 2 of the code wrote."""
    facts = load_facts(data / "facts.jsonl")
    templates = load_templates(settings.templates)
    text = {"text": [sha256_file(path) for path in settings.text], "text_key": settings.text_key}
    common = {
        "tokenizer": load_tokenizer(data / "tokenizer.model").fingerprint,
        "facts": sha256_file(data / "facts.jsonl"),
    }
    names = sorted({fact.relation for fact in facts})
    keys = {
        "facts": {"source": source_fingerprint(settings.facts, "tsv"), "format": "tsv", **settings.select.record()},
        "tokenizer": {
            **text,
            "names": fingerprint(fact_names(facts)),
            "vocab_size": 400,
            "model": "unigram",
            "seed": 0,
        },
        "corpus": {**text, **common, "validation_share": 0.3, "seed": 0},
        "render": {
            **common,
            "templates": {name: asdict(templates[name]) for name in names},
            "distractors": 3,
            "seed": 0,
        },
    }
    (data / "stamps" / "seen.json").unlink()
    for step, key in keys.items():
        path = data / "stamps" / f"{step}.json"
        outputs = json.loads(path.read_text())["outputs"]
        sizes = {name: entry["bytes"] for name, entry in outputs.items() if not name.endswith("model.meta.json")}
        sizes.pop("facts.meta.json", None)
        wanted = fingerprint({"version": 2, "step": step, **key})
        path.write_text(json.dumps({"schema": "kis.stamp/1", "fingerprint": wanted, "outputs": sizes}))


def test_stamps_of_the_old_schema_are_still_read(settings, data, monkeypatch):
    for step in prepare_steps.CODE:
        monkeypatch.setitem(prepare_steps.CODE, step, "2")
    with_old_stamps(settings, data)
    before = contents(data)
    assert stale(settings, data) == []
    dealt = settings.replace(select=settings.select.replace(permute_objects=True))
    assert stale(dealt, data) == ["facts: made from other settings or files (its stamp does not say which)"]
    assert stale(settings.replace(vocab_size=390), data) == [
        "tokenizer: made from other settings or files (its stamp does not say which)"
    ]
    assert worked(run(settings, data)) == []
    assert contents(data) == before
    assert json.loads((data / "stamps" / "corpus.json").read_text())["schema"] == stamps.SCHEMA
    assert stale(settings.replace(vocab_size=390), data) == ["data.vocab_size 400 -> 390"]


def test_data_of_older_code_are_kept_where_runs_hold_them(settings, data):
    with_old_stamps(settings, data)
    numbers = dict.fromkeys(prepare_steps.CODE.values())
    assert stale(settings, data) == [f"versions.code 2 -> {number}" for number in numbers]
    before = contents(data)
    assert worked(run(settings, data, held=Runs())) == []
    assert contents(data) == before
    assert worked(run(settings, data)) == ["facts", "tokenizer", "corpus", "render"]


def test_data_that_name_a_tokenizer_by_its_model_file_are_kept_where_runs_hold_them(settings, data, monkeypatch):
    """As of studies with a byte-bpe tokenizer that were begun with version 2 of the code."""
    for step in prepare_steps.CODE:
        monkeypatch.setitem(prepare_steps.CODE, step, "2")
    bytes_ = settings.replace(tokenizer_model="byte-bpe")
    run(bytes_, data)
    facts, templates = load_facts(data / "facts.jsonl"), load_templates(settings.templates)
    key = {
        "facts": sha256_file(data / "facts.jsonl"),
        "templates": {name: asdict(templates[name]) for name in sorted({fact.relation for fact in facts})},
        "tokenizer": sha256_file(data / "tokenizer.json"),
        "distractors": 3,
        "seed": 0,
    }
    path = data / "stamps" / "render.json"
    sizes = {name: entry["bytes"] for name, entry in json.loads(path.read_text())["outputs"].items()}
    wanted = fingerprint({"version": 2, "step": "render", **key})
    path.write_text(json.dumps({"schema": "kis.stamp/1", "fingerprint": wanted, "outputs": sizes}))
    assert stale(bytes_, data) == [stamps.OLDER_FINGERPRINT]
    assert worked(run(bytes_, data, held=Runs())) == []
    assert worked(run(bytes_, data)) == ["render"]


def test_a_damaged_stamp_is_none(settings, data):
    path = data / "stamps" / "corpus.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert stale(settings.replace(seed=1), data) == [
        "data.seed 0 -> 1",
        "corpus: it is not known what was used to make it",
    ]


def test_two_at_work_on_the_same_data_are_refused(settings, data):
    from megatron_kis.common.errors import JobError
    from megatron_kis.common.files import locked

    with locked(data / "stamps", "other"), pytest.raises(JobError, match="preparation of these data"):
        prepare_data(settings.replace(seed=1), data)
    assert prepare.prepare_data(settings, data)
