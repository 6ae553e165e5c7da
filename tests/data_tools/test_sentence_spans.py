"""Where sentences end: not at abbreviations and ordinals, in several languages."""

import pytest

from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.mentions.decontaminate import FactMatcher
from megatron_kis.data_tools.mentions.sentence_spans import sentence_spans


@pytest.mark.parametrize(
    "text",
    [
        "Einstein wurde am 14. März 1879 in Ulm geboren.",
        "Im 19. Jahrhundert war Wien groß.",
        "Am 7. Oktober kam er.",
        "Ludwig XIV. König von Frankreich, starb dort.",
        "III. Selim İstanbul'da doğdu.",
        "Barack Obama was born on Aug. 4, 1961 in Honolulu.",
        "He came on Jan. 27 to Paris.",
        "See Fig. 3 of it.",
        "It is approx. 50% of it.",
        "Anna Berg, geb. Schmidt, lebte in Bonn.",
        "Warner Bros. Pictures is in Burbank.",
        "Univ. Prof. Huber lehrt in Graz.",
        "La Dra. Ana Ruiz vive en Lima.",
        "Рим (лат. Roma) — город.",
        "Peaks, lakes, etc. Peru has.",
        "Peru vs. Chile in Lima",
        "It is Opus No. 5 and Vol. II of Brahms.",
        "Mt. Logan and Sault Ste. Marie",
        "Gen. Lee met Sen. Smith in Nov. Then",
        "डॉ. अंबेडकर दिल्ली में थे",
        "i.e. Paris, e.g. Rome",
    ],
)
def test_a_full_stop_of_a_word_or_an_ordinal_ends_no_sentence(text):
    assert sentence_spans(text) == [(0, len(text))]


@pytest.mark.parametrize(
    "text",
    [
        "In the year 1999. It ended",
        "It is 3.5. So it goes",
        "She loves art. He does not.",
        "They came by sun. Then it rained.",
        "He lived in Vienna, Austria. Paris was far.",
        "They lived in Bayreuth. 12 men died.",
        "बारिश आहे. तो घरी आहे",
        "བོད་ཀྱི་རྒྱལ་ས་ལྷ་ས་ཡིན། ཁོང་བོད་པ་རེད།",
        "བོད་ཡིན༎ ལྷ་ས་ཡིན༎",
        "བོད་ཡིན། །ལྷ་ས་ཡིན། །",
    ],
)
def test_two_sentences_are_two(text):
    spans = sentence_spans(text)
    assert len(spans) == 2
    assert "".join(text[start:end] for start, end in spans) == text


def test_a_fact_is_found_over_the_full_stop_of_a_date():
    [leak] = FactMatcher([Fact("e", "Einstein", "born in", "Ulm", "infused")]).sentence_matches(
        "Er kam. Einstein wurde am 14. März 1879 in Ulm geboren. Er ging."
    )
    assert leak.facts == ("e",)
