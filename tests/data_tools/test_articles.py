import pytest

from megatron_kis.data_tools.rendering.articles import indefinite_article


@pytest.mark.parametrize(
    "name",
    ["apple", "Éire", "hour", "heirloom", "FBI agent", "X-ray", "8-bit chip", "11th hour", "1800s", "umbrella", "SQL"],
)
def test_names_that_begin_with_the_sound_of_a_vowel_take_an(name):
    assert indefinite_article(name) == "an"


@pytest.mark.parametrize(
    "name",
    ["pear", "European", "university", "one-way road", "UFO", "NATO member", "Utah", "18000th", "historian", "?", ""],
)
def test_other_names_take_a(name):
    assert indefinite_article(name) == "a"
