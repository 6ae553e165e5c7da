import json

import pytest

from megatron_kis.common.errors import InputError
from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.rendering.paraphrases import load_paraphrases
from megatron_kis.data_tools.rendering.render import render
from megatron_kis.data_tools.storage.exposures import read_exposure_index
from megatron_kis.data_tools.storage.indexed import IndexedReader


@pytest.fixture
def written(tmp_path, facts):
    fact = next(fact for fact in facts if fact.group == "infused")

    def write(*rows):
        path = tmp_path / "paraphrases.jsonl"
        lines = []
        for row in rows:
            text = row["text"].replace("SUBJECT", fact.subject).replace("OBJECT", fact.object)
            lines.append(json.dumps({"fact": fact.id, "split": "train", **row, "text": text}))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return load_paraphrases(path, facts)

    return fact, write


def test_paraphrases_are_rendered_and_asked_beside_the_templates(tmp_path, facts, templates, tokenizer, written):
    fact, write = written
    own = write(
        {"text": "They say SUBJECT towers over OBJECT."},
        {"text": "OBJECT, oh OBJECT! SUBJECT is yours."},
        {"text": "Travellers to SUBJECT land in [[OBJECT]].", "split": "held_out"},
    )
    render(facts, templates, tokenizer, tmp_path / "e", paraphrases=own)
    reader = IndexedReader(tmp_path / "e")
    index = read_exposure_index(tmp_path / "e", exposures=len(reader))
    shared = len(templates[fact.relation].train)
    first, count = index.table[index.ids.index(fact.id), :2].tolist()
    assert count == shared + 2
    assert (index.table[:, 1] == shared).sum() == len(index.ids) - 1
    texts = [tokenizer.decode(reader[first + shared + number].tolist()) for number in range(2)]
    assert texts[0] == f"They say {fact.subject} towers over {fact.object}."
    assert texts[1] == f"{fact.object}, oh {fact.object}! {fact.subject} is yours."
    lines = (tmp_path / "e.questions.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    rows = [row for row in map(json.loads, lines) if row["fact"] == fact.id]
    asked = [row["template"] for row in rows if row["split"] == "train"]
    assert asked == [*range(shared), shared]  # not the one that holds its object twice
    held_out = [row for row in rows if row["split"] == "held_out"][-1]
    for option in held_out["options"]:
        start, end = option["span"]
        assert tokenizer.decode(option["tokens"]) == f"Travellers to {fact.subject} land in {option['text']}."
        assert tokenizer.decode(option["tokens"][start:end]) == option["text"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "It towers over OBJECT."}, "does not name the subject"),
        ({"text": "SUBJECT is high."}, "does not name the object"),
        ({"text": "SUBJECT is in OBJECTx."}, "does not name the object"),
        ({"text": "SUBJECT is in [[the Moon]]."}, r"marks 'the Moon'; expected"),
        ({"text": "[[SUBJECT]] is in [[OBJECT]]."}, "marks several objects"),
        ({"text": "SUBJECT is in [Y], OBJECT."}, "holds a slot"),
        ({"text": "OBJECT has SUBJECT in OBJECT.", "split": "held_out"}, "names the object twice"),
        ({"text": "object has SUBJECT in [[OBJECT]].", "split": "question"}, "names the object twice"),
        ({"text": "SUBJECT: OBJECT", "split": "test"}, "unknown split 'test'"),
        ({"text": "SUBJECT: OBJECT", "fact": "none"}, "no fact 'none'"),
        ({"text": " "}, "text is missing"),
    ],
)
def test_a_wrong_paraphrase_is_named_by_file_and_line(written, row, problem):
    fact, write = written
    row = {**row, "text": row["text"].replace("object", fact.object.lower())}
    with pytest.raises(InputError, match=rf"paraphrases\.jsonl:2: .*{problem}|paraphrases\.jsonl:2: {problem}"):
        write({"text": "SUBJECT is in OBJECT."}, row)


def test_one_wording_cannot_stand_in_two_splits(written):
    _, write = written
    with pytest.raises(InputError, match=r"jsonl:2: same wording as .*jsonl:1"):
        write(
            {"text": "SUBJECT is in OBJECT."},
            {"text": "subject is in [[OBJECT]]".replace("subject", "SUBJECT"), "split": "held_out"},
        )


def test_sentences_that_differ_by_a_symbol_are_two(written):
    fact, write = written
    own = write({"text": "SUBJECT in OBJECT costs $5."}, {"text": "SUBJECT in OBJECT costs €5.", "split": "held_out"})
    assert len(own[fact.id].train) == len(own[fact.id].held_out) == 1


SCRIPTS = [
    ("俄罗斯", "莫斯科", "俄罗斯的首都叫做[[莫斯科]]。", "俄罗斯的首都叫做[Y]。"),
    ("俄罗斯", "莫斯科", "俄罗斯的首都叫做莫斯科。", "俄罗斯的首都叫做[Y]。"),
    ("ไทย", "กรุงเทพ", "เมืองหลวงของไทยคือกรุงเทพ", "เมืองหลวงของไทยคือ[Y]"),
    ("독일", "베를린", "독일의 수도는 베를린이다.", "독일의 수도는 [Y]이다."),
    ("فرنسا", "باريس", "سافرت من فرنسا أو من وباريس", "سافرت من فرنسا أو من و[Y]"),
    ("বাংলাদেশ", "ঢাকা", "বাংলাদেশের রাজধানী ঢাকাতে", "বাংলাদেশের রাজধানী [Y]তে"),
    ("パリ市", "フランス", "パリ市はﾌﾗﾝｽにある。", None),
    ("Euro", "€", "The sign of the Euro is €.", "The sign of the Euro is [Y]."),
    ("The Who", "The Bahamas", "The Who play in The Bahamas.", "The Who play in [Y]."),
]


@pytest.mark.parametrize(("subject", "answer", "text", "template"), SCRIPTS)
def test_a_paraphrase_may_be_in_any_script(tmp_path, subject, answer, text, template):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"fact": "f", "split": "train", "text": text}), encoding="utf-8")
    own = load_paraphrases(path, [Fact("f", subject, "r", answer, "infused")])["f"].train
    assert own == (template or text,)


SIGNED = [
    "-5",
    "$100",
    "#1",
    ".5",
    "+5",
    "<3",
    ".NET",
    "$ave",
    "*NSYNC",
    "'s-Hertogenbosch",
    "'N Sync",
    "ʻOkina",
    "100%",
]


@pytest.mark.parametrize("answer", [*SIGNED, "(500) Days of Summer", "№ 1", "9/11", "1990-05-17", "−5", "C++", "(It)"])
@pytest.mark.parametrize("marks", ["", "[[]]"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_no_sign_of_a_name_stays_outside_the_slot(tmp_path, answer, marks, split):
    path = tmp_path / "p.jsonl"
    text = f"In Vostok it was {marks[:2]}{answer}{marks[2:]} once."
    path.write_text(json.dumps({"fact": "f", "split": split, "text": text}), encoding="utf-8")
    own = load_paraphrases(path, [Fact("f", "Vostok", "r", answer, "infused")])["f"]
    assert own.split(split) == ("In Vostok it was [Y] once.",)


@pytest.mark.parametrize(
    ("answer", "mark", "split", "taken"),
    [
        ("Paris", "Paris", "held_out", True),
        ("Paris", "Paris is big", "held_out", False),
        ("Paris", "Paris is big", "train", False),
        ("Paris", "the Paris", "question", False),
        ("Paris", "Paris's", "question", False),
        ("巴黎", "巴黎很大", "held_out", False),
        ("巴黎", "巴黎很大", "train", False),
        ("ঢাকা", "ঢাকাতে", "held_out", True),
        ("باريس", "وباريس", "held_out", True),
        ("베를린", "베를린이다", "held_out", True),
        ("Россия", "России", "train", True),
        ("Россия", "России", "held_out", False),
        ("Нижний Новгород", "Нижнего Новгорода", "train", True),
        ("Нижний Новгород", "Нижнего", "train", False),
        ("Россия", "Румынии", "train", False),
        ("Türkiye", "Türkiye’de", "train", True),
        ("Helsinki", "Helsingissä", "train", True),
        ("Oslo", "Os", "train", False),
        ("8849", "8848", "train", False),
        ("C++", "C#", "train", False),
        ("€", "!", "train", False),
        ("Paris", "Paris", "train", True),
    ],
)
def test_a_mark_is_the_name(tmp_path, answer, mark, split, taken):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"fact": "f", "split": split, "text": f"Vostok : [[{mark}]] ."}), encoding="utf-8")
    facts = [Fact("f", "Vostok", "r", answer, "infused")]
    if taken:
        [own] = load_paraphrases(path, facts)["f"].split(split)
        assert own == f"Vostok : {mark.replace(answer, '[Y]') if '’' not in mark else mark} ."
    else:
        with pytest.raises(InputError, match="and nothing else, in the mark" + ("" if split == "train" else ".*alias")):
            load_paraphrases(path, facts)


@pytest.mark.parametrize(
    ("split", "told"), [("train", r"object_aliases, or mark it \[\[like this\]\]"), ("question", "object_aliases$")]
)
def test_a_form_that_is_not_found_is_told_with_what_helps(tmp_path, split, told):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"fact": "f", "split": split, "text": "Москва в России"}), encoding="utf-8")
    with pytest.raises(InputError, match=told):
        load_paraphrases(path, [Fact("f", "Москва", "r", "Россия", "infused")])
    with pytest.raises(InputError, match="subject_aliases"):
        load_paraphrases(path, [Fact("f", "Россия", "r", "Москва", "infused")])


@pytest.mark.parametrize("key", ["fact", "split", "text"])
def test_a_paraphrase_without_one_of_its_keys_is_told_which_ones_it_needs(written, key):
    _, write = written
    row = {"text": "SUBJECT: OBJECT", key: ""}
    with pytest.raises(InputError, match=f"{key} is missing.*every paraphrase needs fact, split and text"):
        write(row)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("俄国的首都叫做莫斯科。", "does not name the subject '俄罗斯'"),
        ("俄罗斯的首都。", "does not name the object '莫斯科'"),
        ("莫斯科是俄罗斯的莫斯科。", "names the object twice"),
    ],
)
def test_a_wrong_paraphrase_in_chinese_is_refused(tmp_path, text, problem):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"fact": "f", "split": "held_out", "text": text}), encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        load_paraphrases(path, [Fact("f", "俄罗斯", "r", "莫斯科", "infused")])
