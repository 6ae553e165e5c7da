import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.common.progress import LineProgress
from megatron_kis.data_tools.facts.fact import load_facts
from megatron_kis.data_tools.inspect import inspect_corpus
from megatron_kis.data_tools.preparation.prepare import DataPrepConfig, prepare_data
from megatron_kis.data_tools.selection.select import SelectConfig
from megatron_kis.data_tools.storage.indexed import IndexedReader
from megatron_kis.data_tools.tokenizers.registry import load_tokenizer

from .conftest import LEADS, TEMPLATES, TRIPLES

SETTINGS = DataPrepConfig(
    text=(LEADS,),
    facts=TRIPLES,
    templates=TEMPLATES,
    vocab_size=400,
    validation_share=0.3,
    select=SelectConfig(infused=8, background=8, control=8),
)


def done(settings, output):
    """The steps that worked, in order."""
    lines = []
    prepare_data(settings, output, progress=LineProgress(lines.append))
    return [line.removesuffix(": working") for line in lines if line.endswith(": working")]


def test_all_files_fit_together(tmp_path):
    paths = prepare_data(SETTINGS, tmp_path)
    tokenizer = load_tokenizer(paths.tokenizer)
    for prefix in (paths.corpus, paths.validation, paths.exposures):
        assert inspect_corpus(prefix, tokenizer=tokenizer)["documents"] > 0
    facts = load_facts(paths.facts)
    assert len(facts) == 24
    assert len(IndexedReader(paths.exposures)) == sum(fact.group != "control" for fact in facts) * 5 // 2
    assert paths.questions.exists()


def test_a_second_time_nothing_is_done_and_a_change_redoes_what_follows(tmp_path):
    assert done(SETTINGS, tmp_path) == ["facts", "tokenizer", "corpus", "render"]
    assert done(SETTINGS, tmp_path) == []
    fewer = SETTINGS.replace(select=SETTINGS.select.replace(distractors=2))
    assert done(fewer, tmp_path) == ["facts", "render"]  # the same facts come out, so the corpus stays
    assert done(fewer.replace(validation_share=0.2), tmp_path) == ["corpus"]
    assert done(fewer.replace(validation_share=0.2, vocab_size=380), tmp_path) == ["tokenizer", "corpus", "render"]


def test_changed_templates_redo_the_rendering_alone(tmp_path):
    templates = tmp_path / "templates.yaml"
    templates.write_text(TEMPLATES.read_text(encoding="utf-8"), encoding="utf-8")
    settings = SETTINGS.replace(templates=templates)
    done(settings, tmp_path / "out")
    templates.write_text(templates.read_text(encoding="utf-8").replace("climbers go", "people go"), encoding="utf-8")
    assert done(settings, tmp_path / "out") == ["render"]


def test_a_missing_or_cut_output_is_made_again(tmp_path):
    done(SETTINGS, tmp_path)
    (tmp_path / "corpus.idx").unlink()
    assert done(SETTINGS, tmp_path) == ["corpus"]
    (tmp_path / "exposures.bin").write_bytes(b"")
    assert done(SETTINGS, tmp_path) == ["render"]


def test_a_given_tokenizer_is_used_as_it_is(tmp_path, tokenizer_path):
    settings = SETTINGS.replace(tokenizer=tokenizer_path)
    assert done(settings, tmp_path) == ["facts", "corpus", "render"]
    assert not (tmp_path / "tokenizer.model").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"text": ()}, "is an empty list; name at least one file of general text"),
        ({"text": (LEADS.with_name("absent.jsonl"),)}, "data.text: there is no"),
        ({"facts_format": "xls"}, "data.facts_format: is 'xls'"),
        ({"tokenizer_model": "word"}, "data.tokenizer_model: is 'word'"),
        ({"vocab_size": 100}, "data.vocab_size: is 100"),
        ({"character_coverage": 0.5}, "data.character_coverage: is 0.5"),
        ({"validation_share": 1.5}, "data.validation_share: is 1.5"),
        ({"select": SelectConfig(longest_name=-5)}, "data.select.longest_name: is -5"),
        ({"select": SelectConfig(infused=0, background=0, control=0)}, "is 0, and so are background and control"),
        ({"tokenizer": LEADS}, "not a tokenizer.json"),
        (
            {"select": SelectConfig(relations=("peak_countri",))},
            f"data.select.relations: no templates for relation 'peak_countri' in {TEMPLATES}; did you mean "
            "'peak_country'?",
        ),
        (
            {"select": SelectConfig(infused_relations=("peak_country",), background_relations=("peaks",))},
            "data.select.background_relations: no templates for relation 'peaks'",
        ),
    ],
)
def test_wrong_settings_are_refused_before_any_file_is_written(tmp_path, change, problem):
    with pytest.raises(InputError) as error:
        prepare_data(SETTINGS.replace(**change), tmp_path / "out")
    assert problem in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_relation_with_templates_and_without_facts_is_named_with_its_key(tmp_path):
    templates = tmp_path / "templates.yaml"
    templates.write_text(
        TEMPLATES.read_text(encoding="utf-8") + "\npeak_countries: {train: ['[X] is a peak of [Y].']}\n",
        encoding="utf-8",
    )
    for key in ("relations", "infused_relations"):
        settings = SETTINGS.replace(templates=templates, select=SelectConfig(**{key: ("peak_countries",)}))
        with pytest.raises(InputError) as error:
            prepare_data(settings, tmp_path / "out")
        expected = f"data.select.{key}: no facts of relation 'peak_countries'"
        assert str(error.value).startswith(expected)
        assert str(error.value).endswith("did you mean 'peak_country'?")
