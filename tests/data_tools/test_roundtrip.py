"""Names of many scripts, with and without ids and aliases: chosen, asked about, exported and imported again."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import load_facts, write_facts
from megatron_kis.data_tools.facts.importers import Candidate, import_bear
from megatron_kis.data_tools.facts.names import Entities, name_key
from megatron_kis.data_tools.rendering.render import render
from megatron_kis.data_tools.rendering.templates import RelationTemplates
from megatron_kis.data_tools.selection.exports import export_bear
from megatron_kis.data_tools.selection.select import SelectConfig, select_facts
from megatron_kis.data_tools.tokenizers.base import Tokenizer

SCRIPTS = (
    "Málaga Peru Perú Łódź Lodz İzmir Straße Ærø",
    "Αθήνα Πάτρα Κως",
    "Київ Кйив Минск Ёлка Елка",
    "مِصر مُصر قطر العراق",
    "כֹּהֵן כהן חיפה",
    "टोगो टोंगा लोमे लीमा पेरू",
    "টোগো টোঙ্গা ঢাকা",
    "தோகோ தொங்கா",
    "టోగో టోంగా",
    "กา กี กู กรุงเทพ",
    "ລາວ ລິວ",
    "ភ្នំ ភ្នុំ",
    "မြို့ မြိုး",
    "თბილისი ბათუმი",
    "Երևան Գյումրի",
    "አዲስ አበባ",
    "東京 京都 北京 南京",
    "パリ バリ ハリ とうきょう",
    "서울 부산 대구",
    "A+ A- AB+ AB- C C++ C# -5 5 H₂O € $ + ½",
)
NAMES = [name for line in SCRIPTS for name in line.split()]
TEMPLATES = {
    "r": RelationTemplates(("[X] : [Y] .", "[X] - [Y] !"), ("[Y] / [X] ,",), ("? [X] = [Y]",)),
    "ਰਾਜਧਾਨੀ": RelationTemplates(("[X] ~ [Y] .",), ("( [X] ; [Y] )",), ()),
}
KEPT = ("subject", "relation", "object", "subject_id", "object_id", "subject_aliases", "object_aliases")
REFUSED = ("possible distractors", "no wrong object", "can be asked about")
names = st.sampled_from(NAMES) | st.builds("{} {}".format, st.sampled_from(NAMES), st.sampled_from(NAMES))
entities = st.tuples(names, st.sampled_from(["", "", "Q1", "Q2", "Q3", "Q4", "Q5"]), st.lists(names, max_size=2))


@st.composite
def triples(draw: st.DrawFn) -> list[Candidate]:
    """As importers yield them: no name is among its own aliases."""
    found = []
    for number in range(draw(st.integers(12, 40))):
        subject, subject_id, subject_aliases = draw(entities)
        answer, object_id, object_aliases = draw(entities)
        relation = draw(st.sampled_from(list(TEMPLATES)))
        found.append(
            Candidate(
                f"{subject} {number // 2}",
                relation,
                answer,
                f"t:{number}",
                subject_id=subject_id and f"S{number}",
                object_id=object_id,
                subject_aliases=tuple(subject_aliases),
                object_aliases=tuple(alias for alias in object_aliases if alias != answer),
            )
        )
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(triples(), st.sampled_from([0, 1]), st.sampled_from([1, 2, None]))
def test_what_is_chosen_is_asked_rightly_and_comes_back(
    tokenizer: Tokenizer, rows: list[Candidate], facts_per_object: int, distractors: int | None
) -> None:
    how = SelectConfig(
        infused=6, background=0, control=0, facts_per_object=facts_per_object, distractors=1, keep_telling_names=True
    )
    try:
        facts = select_facts(rows, how).facts
    except InputError:
        return
    known = Entities(rows)
    for one, other in combinations(facts, 2):
        assert (one.relation, name_key(one.subject)) != (other.relation, name_key(other.subject))
        if facts_per_object and one.relation == other.relation:
            assert known.meanings(one.object).isdisjoint(known.meanings(other.object))
    with TemporaryDirectory() as place:
        folder = Path(place)
        write_facts(folder / "facts.jsonl", facts)
        assert load_facts(folder / "facts.jsonl") == facts
        [group] = export_bear(facts, TEMPLATES, folder)
        metadata = json.loads((group / "metadata_relations.json").read_text())
        for entry in metadata.values():
            keys = list(map(name_key, entry["answer_space_labels"]))
            assert len(set(keys)) == len(keys) == len(set(entry["answer_space_ids"]))
        back = {found.id: replace(found, where="") for found in import_bear(group)}
        assert len(back) == len(facts)
        for fact in facts:
            found = back[fact.id]
            assert [getattr(found, name) for name in KEPT] == [getattr(fact, name) for name in KEPT]
        try:
            path = render(facts, TEMPLATES, tokenizer, folder / "e", distractors=distractors).questions_path
        except InputError as error:
            assert any(reason in str(error) for reason in REFUSED)
            return
        by_id, asked = {fact.id: fact for fact in facts}, Entities(facts)
        _, *questions = map(json.loads, path.read_text().splitlines())
        for question in questions:
            options = question["options"]
            assert options[question["answer"]]["text"] == by_id[question["fact"]].object
            for one, other in combinations(options, 2):
                assert asked.meanings(one["text"]).isdisjoint(asked.meanings(other["text"]))
                assert one["tokens"] != other["tokens"]
            for option in options:
                start, stop = option["span"]
                assert tokenizer.decode(option["tokens"][start:stop]).strip() != ""
