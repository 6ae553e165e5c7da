"""Little words that are glued to names."""

import pytest

from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.mentions.decontaminate import FactMatcher
from megatron_kis.data_tools.mentions.mentions import SearchedText, mentions

_KOREAN = [
    "에만",
    "이었고",
    "로부터",
    "으로부터",
    "뿐이다",
    "께서",
    "조차",
    "이죠",
    "로서",
    "으로서",
    "씨는",
    "이었습니다만",
    "마저",
    "밖에",
    "에도",
    "에는",
    "에서는",
    "에서도",
    "와의",
    "과의",
    "으로의",
    "로의",
    "에서의",
    "까지도",
    "부터는",
    "에게는",
    "만이",
    "만은",
    "만의",
    "까지의",
    "였고",
    "에서만",
    "에서부터",
    "으로도",
    "였습니다",
    "이었지만",
    "이라서",
    "인데",
    "인가",
    "이었던",
    "보다도",
    "처럼은",
    "이라도",
    "은",
    "들의",
    "이라고는",
    "라고도",
    "시에서",
]


def found(name, text):
    finder = FactMatcher([Fact("f", name, "r", "Xylophone", "infused")])
    listed = [text[start:end] for start, end in mentions(SearchedText(text), [name])]
    assert (finder.facts_in(f"{text} Xylophone") == ["f"]) == bool(listed)
    return listed


@pytest.mark.parametrize("particles", _KOREAN)
def test_korean_particles_follow_one_another(particles):
    assert found("서울", f"그는 서울{particles} 갔다") == ["서울"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("인도", "인도네시아의 수도"),
        ("기니", "기니비사우"),
        ("서울", "서울대학교"),
        ("가나", "가나안의 땅"),
        ("독일", "독일어를 배운다"),
        ("수단", "수단방법을"),
        ("ജപ്പാൻ", "ജപ്പാനികൾ"),
        ("ألمانيا", "الماني"),
        ("مالي", "لالماليات"),
    ],
)
def test_another_word_is_not_a_name_with_particles(name, text):
    assert not found(name, text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ജപ്പാൻ", "ജപ്പാന്റെ തലസ്ഥാനം"),
        ("ജപ്പാൻ", "ജപ്പാനിലേക്ക് പോയി"),
        ("ജപ്പാൻ", "ജപ്പാൻ തലസ്ഥാനം"),
        ("ജപ്പാൻ", "ജപ്പാനുടെ"),
        ("നേപ്പാൾ", "നേപ്പാളിന്റെ തലസ്ഥാനം"),
        ("നേപ്പാൾ", "നേപ്പാളിൽ"),
        ("ബ്രസീൽ", "ബ്രസീലിലേക്ക്"),
        ("ബ്രസീൽ", "ബ്രസീലിനെ"),
        ("ഖത്തർ", "ഖത്തറിലേക്ക്"),
        ("ഖത്തർ", "ഖത്തറിനെ"),
        ("മ്യൂണിക്ക്", "മ്യൂണിക്കിലെ"),
        ("കേരളം", "കേരളത്തിലേക്ക്"),
        ("ألمانيا", "عاصمة لألمانيا"),
        ("ألبانيا", "السفر لألبانيا وغيرها"),
        ("ألاسكا", "سافر لألاسكا"),
        ("ألمانيا", "ولألمانيا"),
        ("ألمانيا", "بألمانيا"),
        ("ألمانيا", "المانيا"),
        ("الرياض", "وصل للرياض أمس"),
        ("القاهرة", "في القاهرة."),
        ("غزة", "إلى غزه"),
        ("غزه", "في غزة"),
        ("مكة", "إلى مكه وغيرها"),
        ("مكة المكرمة", "في مكة المكرمه"),
    ],
)
def test_a_name_is_found_with_what_is_glued_to_it(name, text):
    assert found(name, text)
