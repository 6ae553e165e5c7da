"""What capitals at the start of a sentence say of a name."""

import pytest

from megatron_kis.data_tools.mentions.mentions import SearchedText, mentions


def named(text, name):
    return [text[start:end] for start, end in mentions(SearchedText(text), [name])]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("US", "US President Joe Biden spoke."),
        ("US", "He left. US troops stayed with us and our friends."),
        ("U.S.", "U.S. President Joe Biden spoke."),
        ("US", "US GDP"),
        ("IT", "IT is a business of its own."),
        ("NO", "NO is made of nitrogen and oxygen."),
        ("WHO", "WHO is in Geneva."),
        ("A+", "A+ is a blood type."),
        ("O-", "O- is a blood type, too."),
        ("A-", "A\u2212 is a blood type."),
        ("A$", "A$ is the dollar of Australia."),
        ("US$", "US$ is the dollar of America."),
        ("The Netherlands", "Netherlands: Amsterdam"),
        ("The Gambia", "Gambia's capital is Banjul."),
        ("The Bahamas", "It is warm. Bahamas has Nassau."),
        ("The Beatles", "Beatles songs in Liverpool"),
        ("The Hague", "Hague is a city."),
        ("The Band", "The Band lives in London."),
        ("The Sun", "The Sun is printed in London."),
    ],
)
def test_a_name_is_found_at_the_start_of_a_sentence(name, text):
    assert named(text, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("The Who", "Who lives in London?"),
        ("Who", "Who lives in London?"),
        ("WHO", "Who lives in Geneva?"),
        ("IT", "IT RAINS IN MAINE."),
        ("The Band", "Band members live in London."),
        ("The Sun", "Sun and rain in London."),
        ("The Times", "Times are hard in London."),
        ("The Doors", "Doors were open in Venice."),
        ("The Guardian", "Guardians watch it. Guardian angels do."),
        ("A", "A man came"),
        ("A", "A + B is a sum"),
    ],
)
def test_a_word_of_every_day_is_no_name_at_the_start_of_a_sentence(name, text):
    assert not named(text, name)
