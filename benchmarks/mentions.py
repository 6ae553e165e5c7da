"""What leak finding finds and misses in each language, next to a search for the names in lower case.

``python -m benchmarks.mentions``: real labels, CLDR's territories and cities of time zones, as ``babel`` has them (it
comes with mkdocs-material; nothing else needs it). Facts are (city, territory). Every fact is stated once by each
sentence of its language, with the language's particles and endings where they are regular; the other documents name
the city with another territory. All facts are sought in every document: a pair that is found and not stated is wrong,
but for pairs that lie in the sentence by other names (Mexico City has Mexico).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.mentions.decontaminate import FactMatcher

Ending = Callable[[str], str]


def _after(text: str) -> Ending:
    """The same ending for every name."""
    return lambda name: name + text


def _korean(closed: str, open_: str) -> Ending:
    def ending(name: str) -> str:
        letters = unicodedata.normalize("NFD", name)
        return name + (closed if "\u11a8" <= letters[-1] <= "\u11ff" else open_)

    return ending


def _rules(*rules: tuple[str, str]) -> Ending:
    """The first rule whose pattern matches the end of the name replaces it."""

    def ending(name: str) -> str:
        for pattern, replacement in rules:
            if re.search(pattern, name):
                return re.sub(pattern, replacement, name, count=1)
        return name

    return ending


_CONSONANT_BN = r"(?<=[\u0995-\u09b9\u09dc-\u09df\u09ce\u0982\u0981])$"
_ENDINGS: dict[str, dict[str, Ending]] = {
    "ko": {"s": _korean("은", "는"), "i": _after("에"), "g": _after("의"), "c": _korean("이다", "다")},
    "bn": {
        "i": _rules((r"্$", "ে"), (_CONSONANT_BN, "ে"), (r"$", "তে")),
        "g": _rules((_CONSONANT_BN, "ের"), (r"$", "র")),
    },
    "mr": {
        "i": _rules((r"(?<=[\u0915-\u0939])$", "ात"), (r"्$", "मध्ये"), (r"$", "त")),
        "g": _rules((r"(?<=[\u0915-\u0939])$", "ाचे"), (r"$", "चे")),
    },
    "gu": {"i": _after("માં"), "g": _after("નું")},
    "ne": {"i": _after("मा"), "g": _after("को")},
    "ta": {
        "i": _rules((r"ம்$", "த்தில்"), (r"்$", "ில்"), (r"ு$", "ில்"), (r"(?<=[ியைே])$", "யில்"), (r"$", "வில்")),
        "g": _rules((r"ம்$", "த்தின்"), (r"்$", "ின்"), (r"ு$", "ின்"), (r"(?<=[ியைே])$", "யின்"), (r"$", "வின்")),
    },
    "te": {"i": _after("లో"), "g": _after("కి")},
    "kn": {"i": _rules((r"್$", "‌ನಲ್ಲಿ"), (r"(?<=[ಾ])$", "ದಲ್ಲಿ"), (r"(?<=[ಿೀೆೇೈ])$", "ಯಲ್ಲಿ"), (r"ು$", "ಿನಲ್ಲಿ"), (r"$", "ನಲ್ಲಿ"))},
    "ml": {
        "i": _rules(
            (r"ം$", "ത്തിൽ"),
            (r"്$", "ിൽ"),
            (r"ൽ$", "ലിൽ"),
            (r"ൻ$", "നിൽ"),
            (r"ർ$", "റിൽ"),
            (r"(?<=[ാൂോ])$", "വിൽ"),
            (r"$", "യിൽ"),
        )
    },
    "ka": {"i": _rules((r"ი$", "ში"), (r"$", "ში")), "g": _rules((r"ი$", "ის"), (r"[აე]$", "ის"), (r"$", "ს"))},
    "hy": {"i": _rules((r"ա$", "այում"), (r"$", "ում")), "g": _rules((r"ա$", "այի"), (r"ի$", "ու"), (r"$", "ի"))},
    "tr": {"i": _after("'da")},
    "fi": {"i": _rules((r"(?<=[^aeiouyäö])$", "issa"), (r"$", "ssa"))},
    "ru": {"i": _rules((r"ия$", "ии"), (r"а$", "е"), (r"(?<=[бвгджзклмнпрстфхцчшщ])$", "е"))},
    "uk": {"i": _rules((r"ія$", "ії"), (r"а$", "і"), (r"(?<=[бвгджзклмнпрстфхцчшщ])$", "і"))},
    "pl": {"i": _rules((r"ia$", "ii"), (r"a$", "ie"), (r"(?<=[bcdfghjklmnprstwz])$", "ie"))},
}

# {x} is the city, {y} the territory; {y:i} with the ending of a place, {x:g} of a genitive, {x:s} of a topic.
SENTENCES: dict[str, tuple[str, ...]] = {
    "en": ("{x} is a city in {y}.", "We flew to {y}; {x} was cold.", "In {x}, as in all of {y}, it rained."),
    "de": ("{x} ist eine Stadt in {y}.", "Wer nach {y} reist, sieht auch {x}."),
    "fi": ("{x} on kaupunki, ja {y} on maa.", "{x} sijaitsee maassa, jonka nimi on {y}.", "{x} on {y:i}."),
    "pl": ("{x} to miasto, a kraj to {y}.", "{x} leży w {y:i}."),
    "tr": ("{x}, {y} ülkesinde bir şehirdir.", "{x} {y:i} bulunur."),
    "el": ("Η πόλη {x} βρίσκεται στη χώρα {y}.", "{y}: εκεί είναι το {x}."),
    "ru": ("{x} — это город, {y} — страна.", "{x} находится в {y:i}."),
    "uk": ("{x} — це місто, {y} — країна.", "{x} розташоване в {y:i}."),
    "hy": ("{x} քաղաքը {y:i} է։", "{y:g} քաղաք {x}։"),
    "ka": ("{x} არის ქალაქი {y:i}.", "{y:g} ქალაქი {x}."),
    "ar": ("تقع مدينة {x} في {y}.", "سافرنا من {y} وعدنا ب{x}.", "{x} مدينة ل{y} و{y} بلد."),
    "fa": ("شهر {x} در {y} است.", "{y} کشوری است و {x} شهر آن."),
    "ur": ("{x} {y} کا شہر ہے۔", "{y} میں {x} واقع ہے۔"),
    "he": ("העיר {x} נמצאת ב{y}.", "ב{x} ול{y} נסענו."),
    "am": ("{x} በ{y} ውስጥ ያለ ከተማ ነው።", "የ{y} ከተማ {x} ነው።"),
    "hi": ("{x} {y} का एक शहर है।", "{y} में {x} स्थित है।"),
    "mr": ("{x} {y:i} आहे.", "{x} हे {y:g} शहर आहे."),
    "ne": ("{x} {y:i} पर्छ।", "{y:g} सहर {x} हो।"),
    "bn": ("{x} {y:i} অবস্থিত।", "{x} {y:g} একটি শহর।"),
    "gu": ("{x} {y:i} આવેલું છે.", "{x} {y:g} શહેર છે."),
    "pa": ("{x} {y} ਦਾ ਸ਼ਹਿਰ ਹੈ।", "{y} ਵਿੱਚ {x} ਹੈ।"),
    "ta": ("{x} {y:i} உள்ளது.", "{y:g} நகரம் {x}."),
    "te": ("{x} {y:i} ఉంది.", "{x} {y:g} చెందిన నగరం."),
    "kn": ("{x} {y:i} ಇದೆ.", "{y} ದೇಶದ ನಗರ {x}."),
    "ml": ("{x} {y:i} ആണ്.", "{y} രാജ്യത്തെ നഗരമാണ് {x}."),
    "si": ("{x} නගරය {y} රටේ පිහිටා ඇත.", "{y} හි {x} ඇත."),
    "zh": ("{x}是{y}的城市。", "在{y}，我们去了{x}市。", "{y}有许多城市，例如{x}。"),
    "ja": ("{x}は{y}の都市です。", "{y}では{x}が有名だ。", "{y}から{x}へ行った。"),
    "ko": ("{x:s} {y:g} 도시이다.", "{y:i} 있는 도시는 {x:c}.", "{x}에서 {y}까지 갔다."),
    "th": ("{x}เป็นเมืองในประเทศ{y}", "ประเทศ{y}มีเมืองชื่อ{x}อยู่", "เราไป{y}และ{x}"),
    "lo": ("{x}ເປັນເມືອງໃນປະເທດ{y}", "ປະເທດ{y}ມີເມືອງ{x}"),
    "km": ("{x}គឺជាទីក្រុងនៅក្នុង{y}។", "{y}មានទីក្រុង{x}។"),
    "my": ("{x}သည် {y}တွင်ရှိသော မြို့ဖြစ်သည်။", "{y}၏ မြို့မှာ {x}ဖြစ်သည်။"),
}


def labels(language: str) -> list[tuple[str, str]]:
    """City and territory of all time zones, in a language; those that are one name are left out."""
    from babel import Locale
    from babel.core import get_global

    locale = Locale.parse(language)
    found: dict[str, str] = {}
    for zone, territory in sorted(get_global("zone_territories").items()):
        own = locale.time_zones.get(zone, {}).get("city")
        city = own or zone.rpartition("/")[2].replace("_", " ")
        name = locale.territories.get(territory)
        if (
            name
            and territory != "ZZ"
            and "/" in zone
            and (own or city.isascii())
            and name not in city
            and city not in name
        ):
            found.setdefault(city, name)
    return list(found.items())


def filled(sentence: str, language: str, city: str, territory: str) -> str:
    """A sentence about a city and a territory."""

    def name(match: re.Match[str]) -> str:
        own = city if match[1] == "x" else territory
        return _ENDINGS[language][match[2]](own) if match[2] else own

    return re.sub(r"\{([xy])(?::(\w))?\}", name, sentence)


def substrings(facts: Sequence[Fact]) -> Callable[[str], list[str]]:
    """The simple way: both names are in the lower-case text."""
    names = [(fact.id, fact.subject.lower(), fact.object.lower()) for fact in facts]

    def find(text: str) -> list[str]:
        lower = text.lower()
        return [one for one, subject, answer in names if subject in lower and answer in lower]

    return find


def documents(language: str, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Texts, with the id of the fact that each states, or an empty string."""
    for at, (city, territory) in enumerate(pairs):
        other = next(one for _, one in (*pairs[at + 7 :], *pairs) if one != territory and city not in one)
        for sentence in SENTENCES[language]:
            yield filled(sentence, language, city, territory), city
            yield filled(sentence, language, city, other), ""


def main() -> None:
    """Prints a table."""
    print("| language | facts | found | wrong | found by substrings | wrong |\n|---|---:|---:|---:|---:|---:|")
    for language in SENTENCES:
        pairs = labels(language)
        facts = [Fact(city, city, "country", territory, "infused") for city, territory in pairs]
        cells = [language, str(len(facts))]
        for find in (FactMatcher(facts).facts_in, substrings(facts)):
            count: Counter[str] = Counter()
            for text, fact in documents(language, pairs):
                stated = set(find(text))
                count["documents"] += bool(fact)
                count["found"] += bool(fact) and fact in stated
                count["wrong"] += len(stated - {fact})
            cells += [f"{count['found'] / count['documents']:.1%}", str(count["wrong"])]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
