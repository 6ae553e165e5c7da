"""Where a name stands in text, in every script."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_kis.data_tools.facts.fact import Fact
from megatron_kis.data_tools.facts.folding import FoldedText, line_of_words, words
from megatron_kis.data_tools.mentions.decontaminate import DecontaminationStats, FactMatcher, iter_matches
from megatron_kis.data_tools.mentions.mentions import Name, SearchedText, mentions
from megatron_kis.data_tools.mentions.numerals import readings
from megatron_kis.data_tools.mentions.sentence_spans import sentence_spans
from megatron_kis.data_tools.readers.documents import Document
from megatron_kis.data_tools.selection.revealing_names import contains_name, reveals_object


def named(text, *names):
    return [text[start:end] for start, end in mentions(SearchedText(text), names)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("巴黎", "法国的首都是巴黎。"),
        ("東京", "日本の首都は東京である。"),
        ("パリ", "フランスの首都はパリです。"),
        ("パリ", "ﾊﾟﾘは都市"),
        ("ニューヨーク", "彼はニュー・ヨークに住む"),
        ("8849", "海拔8849米"),
        ("London", "他住在London市"),
        ("กรุงเทพ", "เมืองหลวงของไทยคือกรุงเทพ"),
        ("서울", "대한민국의 수도는 서울이다."),
        ("서울", "서울에서는 비가 온다"),
        ("남아프리카 공화국", "남아프리카공화국의 수도"),
        ("باريس", "عاصمة فرنسا هي بارِيس."),
        ("باريس", "سافر إلى روما وباريس"),
        ("الرياض", "وصل للرياض أمس"),
        ("ירושלים", "הוא גר בירושלים"),
        ("ঢাকা", "তিনি ঢাকায় থাকেন"),
        ("ঢাকা", "বাংলাদেশের রাজধানী ঢাকা।"),
        ("সিলেট", "সিলেটের নদী"),
        ("দিল্লি", "দিল্লিতে বাস করেন"),
        ("பாரிஸ்", "அவர் பாரிஸில் வாழ்கிறார்"),
        ("சென்னை", "சென்னையில் மழை"),
        ("თბილისი", "ის თბილისში ცხოვრობს"),
        ("Երևան", "նա ապրում է Երևանում"),
        ("मुंबई", "मुंबईत राहतो"),
        ("दिल्ली", "भारत की राजधानी दिल्ली है।"),
        ("ສປປລາວ", "ຢູ່ ສປປລາວ"),
        ("አዲስ አበባ", "በአዲስ አበባ ይኖራል"),
        ("Łódź", "Lodz is a city"),
        ("Ærø", "The isle of Aero"),
        ("Þór", "thor? No: Thor"),
        ("Київ", "Столиця — Ки\u0301їв."),
        ("Пётр", "Петр Первый"),
        ("8849", "Mount Q is 8,849 m high."),
        ("1,000,000", "it has 1000000 people"),
        ("1000000", "1.000.000 or so"),
        ("1000000", "it has 1 000 000 people"),
        ("1000000", "about 10,00,000 people"),
        ("0.125", "it is 0,125 of it"),
        ("3.5", "a rate of 3.5."),
        ("-5", "it was \u22125 degrees"),
        ("5", "the five (5)."),
        ("1990", "on 5.8.1990 and later"),
        ("US", "he went to the U.S. in May"),
        ("U.S.", "in the US army"),
        ("USA", "the U. S. A. has"),
        ("J. R. R. Tolkien", "by JRR Tolkien."),
        ("C++", "He knows C++ and C#."),
        ("C", "He knows C, not more."),
        ("A+", "Blood type A+."),
        ("A-", "Blood type A-."),
        ("A-", "Blood type A\u2212, too"),
        ("A", "Vitamin A is good"),
        ("€", "It costs 5€."),
        ("+", "The sign + adds."),
        ("👍", "good 👍 work"),
        ("Mercury (planet)", "The planet Mercury is hot."),
        ("The Bahamas", "Nassau, Bahamas"),
        ("The Who", "Music by the Who is loud"),
        ("The Who", "The Who are from London"),
        ("Bissau", "Guinea-Bissau"),
        ("N'Djamena", "in N’Djamena"),
        ("Como", "Como is a city in Italy."),
        ("Turkey", "TURKEY AND GREECE"),
        ("Principe Islands", "to the principe islands"),
        ("aconcagua", "Aconcagua"),
        ("Argentina", "i live in argentina"),
        ("ilk", "The ilk of them"),
        ("gas", "Gas is light."),
        ("e\u0301tude", "an étude"),
        ("סן חואן", "הוא גר בסן חואן"),
        ("GMT-1", "the zone GMT-1"),
        ("€5", "it costs 5 € now"),
        ("5 €", "it costs €5 now"),
        ("$5", "it costs US$5 now"),
        ("№ 1", "it is №1"),
        ("100%", "it is 100 % of that"),
        (".5", "it is 0.5 of that"),
        ("2-0", "they won 2–0."),
        ("9/11", "after 9/11, all"),
        ("'N Sync", "a song by ’N Sync"),
        ("5", "in Paris.5 years"),
        ("100%", "共100％"),
        ("$5", "it is ＄5"),
        ("100%", "es ist 100%ig"),
    ],
)
def test_a_name_is_found(name, text):
    assert named(text, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("京", "北京是首都"),
        ("パリ", "スパリゾート"),
        ("パリ", "バリは島"),
        ("ลาว", "ลาวัณย์"),
        ("인도", "인도네시아의 수도"),
        ("인도", "그 확인 도 했다"),
        ("기니", "기니비사우"),
        ("مالي", "إجماليات"),
        ("लोमे", "लीमा और पेरू"),
        ("टोगो", "टोंगा"),
        ("কলি", "কলিকাতা"),
        ("C", "He learned C++."),
        ("C", "He learned C#."),
        ("C++", "He learned C."),
        ("A", "Blood type A+ is common"),
        ("A", "Blood type A- is common"),
        ("A+", "Blood type A- is common"),
        ("A", "A man came"),
        ("5", "it was -5 degrees"),
        ("-5", "it was 5 degrees"),
        ("5", "it was 3.5 degrees"),
        ("5", "it was 5.7 degrees"),
        ("849", "it has 8,849 m"),
        ("8849", "8, 849"),
        ("8849", "it has 8,849,000 people"),
        ("19", "COVID-19"),
        ("5", "from 1914-5 on"),
        ("US", "Tell us of it"),
        ("Us", "Us and them"),
        ("It", "It rains in Maine"),
        ("Her", "Her book. “Her own.”"),
        ("The Who", "A man who lives in London."),
        ("Who", "Who lives in London?"),
        ("Elle", "Elle habite à Paris."),
        ("Das", "Das ist in Berlin so."),
        ("The Band", "Band members live in London."),
        ("Turkey", "A turkey dinner in Ankara"),
        ("OR", "Oregon or Maine"),
        ("I", "I live there"),
        ("+", "C++ is a language"),
        ("Київ", "Києв"),
        ("Guinea", "guineas"),
        ("GMT-1", "the zone GMT+1"),
        ("$5", "it is 5 km"),
        ("#1", "it is 1 thing"),
        (".5", "it is 5 km"),
        ("<3", "it has 3 hearts"),
        ("+5", "it has 5"),
        ("№ 1", "it has 1"),
        ("100%", "it has 100"),
        ("5 €", "it is 5 km"),
        ("5", "it is .5 of that"),
        ("C", "it is 20 °C"),
        ("C", "it is 20 º C"),
        ("5°", "it is 5°C"),
        ("°C", "it is C"),
        ("10⁶", "it is 106"),
        ("9/11", "it is 9.11"),
        ("2-0", "it is 2.0"),
        ("2-0", "it is 2-0-1"),
        ("12:30", "it is 12:30:45"),
        ("1", "it is 1½"),
    ],
)
def test_another_word_is_not_the_name(name, text):
    assert not named(text, name)


# Characters count: what makes a name of these is their signs, marks and numbers.
LITERAL = [
    *[
        "9/11",
        "24/7",
        "7-Eleven",
        "4-H",
        "3-D",
        "5-HT",
        "3-Methylheptane",
        "16:9",
        "20/20",
        "3:10 to Yuma",
        "2-0",
        "12:30",
    ],
    *["11/09/2001", "1990-05-17", "1½", "8½", "10⁶", "10⁻⁶", "-5", "$100", "-$5", "#1", ".5", "-.5", "+5", "<3", "№ 1"],
    *[".NET", "$ave", "*NSYNC", "'s-Hertogenbosch", "'N Sync", "ʻOkina", "(500) Days of Summer", "100%", "5 €", "°C"],
    *["Vitamin -5", "1000 2000 3000 4000", "5.8.1990", "2,2,4-Trimethylpentane", "U2", "A.B.C", "C++", "1.2.3-4"],
]


@pytest.mark.parametrize("name", LITERAL)
def test_a_name_is_found_with_all_its_characters(name):
    assert named(f"about {name} here", name) == [name]


@given(
    st.lists(
        st.sampled_from(
            [
                *[
                    "0",
                    "5",
                    "11",
                    "123",
                    "1990",
                    "1,000",
                    "1.5",
                    "3½",
                    "10⁶",
                    "h²",
                    "A",
                    "B",
                    "U.S.",
                    "AB",
                    "de",
                    "Oslo",
                ],
                *["ʻOkina", "Łódź", "東京", "서울", "باريس", "ঢাকা", "The Who"],
            ]
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([" ", "-", "/", ":", ".", ", ", "–", " & ", "'", "+", " -"]),
    st.sampled_from(["", "-", "$", "#", ".", "<", "+", "*", "(", "'", "№ ", "°"]),
    st.sampled_from(["", "+", "%", "!", ".", " €", "°", ")", "#", "-"]),
)
def test_a_name_is_found_where_text_has_it_character_for_character(parts, joint, before, behind):
    name = f"{before}{joint.join(parts)}{behind}".strip()
    if Name(name).searchable:
        assert name in named(f"about {name} here", name)


@pytest.mark.parametrize("digits", ["5,", "12.34.", "5 ", "$5", "5-", "5:", "5'"])
def test_a_page_of_numbers_takes_no_longer_than_its_length(digits):
    finder = FactMatcher([Fact(name, "Zed", "r", name, "infused") for name in ("5", "$5", "-7")])
    text = f"Zed {digits * 20000}"
    began = time.process_time()
    finder.facts_in(text)
    mentions(SearchedText(text), ["5"])
    assert time.process_time() - began < 5  # seconds of a slow machine; minutes where every match reads the page


def test_a_longer_name_wins_where_no_space_parts_them():
    facts = [
        Fact("a", "几内亚", "首都", "科纳克里", "infused"),
        Fact("b", "几内亚比绍", "首都", "比绍", "infused"),
        Fact("c", "中国", "首都", "北京", "infused"),
        Fact("d", "北京市", "书记", "某人甲", "infused"),
    ]
    finder = FactMatcher(facts)
    assert finder.facts_in("几内亚比绍不在科纳克里。") == []
    assert finder.facts_in("几内亚的首都是科纳克里。") == ["a"]
    assert finder.facts_in("中国的首都是北京市。") == ["c"]


FACTS = {
    "zh": ("法国", "巴黎", "法国的首都是巴黎。", "法国的首都不是东京。"),
    "ja": ("日本", "東京", "日本の首都は東京です。", "日本語は東亜の言葉"),
    "th": ("ไทย", "กรุงเทพ", "กรุงเทพเป็นเมืองหลวงของไทย", "กรุงเก่าของไทย"),
    "ko": ("독일", "베를린", "독일의 수도는 베를린이다.", "독일의 수도는 본이었다."),
    "ar": ("فرنسا", "باريس", "باريس عاصمة لفرنسا.", "باريسية في فرنسا"),
    "he": ("צרפת", "פריז", "בצרפת נמצאת פריז", "בצרפת"),
    "hi": ("पेरू", "लीमा", "लीमा पेरू की राजधानी है।", "लोमे और पेरू"),
    "my": ("မြန်မာ", "ရန်ကုန်", "ရန်ကုန်သည် မြန်မာတွင်ရှိသည်။", "ရန် မြန်မာ"),
    "km": ("កម្ពុជា", "ភ្នំពេញ", "រាជធានីកម្ពុជាគឺភ្នំពេញ។", "កម្ពុជា"),
    "ka": ("საქართველო", "თბილისი", "საქართველოს დედაქალაქია თბილისი.", "საქართველოს"),
    "pl": ("Polska", "Łódź", "Polska ma miasto Lodz.", "Polska ma lodzie"),
}


@pytest.mark.parametrize("language", FACTS)
def test_leaks_are_found_in_every_script(language, tmp_path):
    subject, answer, stated, not_stated = FACTS[language]
    finder = FactMatcher([Fact(language, subject, "r", answer, "control")])
    assert finder.facts_in(stated) == [language]
    assert finder.facts_in(not_stated) == []
    [leak] = finder.sentence_matches(f"{not_stated}\n\n{stated}")
    assert leak.span[1] - leak.span[0] == len(stated)
    decomposed = unicodedata.normalize("NFD", stated)
    assert finder.facts_in(decomposed) == [language]
    [leak] = finder.sentence_matches(f"{not_stated}\n\n{decomposed}")
    assert leak.span[1] - leak.span[0] == len(decomposed)


def test_names_that_cannot_be_sought_are_told():
    count = DecontaminationStats()
    facts = [Fact("a", "I", "symbol", "…", "infused"), Fact("b", "€", "of", "Europe", "infused")]
    [(_, [match])] = iter_matches([Document("€ is of Europe", "t", 1)], facts, count)
    assert match.facts == ("b",)
    assert count.unsearchable == ["…", "I"]
    assert any("not searched for: 2 names of facts" in line for line in count.summary(2, "document"))


def test_a_page_of_thousands_of_matches_takes_no_longer_than_its_length():
    facts = [Fact(str(number), "中" * (number + 2), "r", "国" * (number + 2), "infused") for number in range(20)]
    assert FactMatcher(facts).facts_in("中" * 3000 + "国" * 3000)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("法国的首都是巴黎。他说：“你好！”然后走了。", 3),
        ("東京は首都です。本当ですか？はい。", 3),
        ("पेरू एक देश है। लीमा राजधानी है॥", 2),
        ("هل هو هنا؟ نعم.", 2),
        ("یہ شہر ہے۔ وہ گاؤں ہے۔", 2),
        ("Սա քաղաք է։ Դա գյուղ է։", 2),
        ("ከተማ ነው። አገር ነው።", 2),
        ("မြို့ဖြစ်သည်။ ရွာဖြစ်သည်။", 2),
        ("ភ្នំពេញ។ កម្ពុជា។", 2),
        ("กรุงเทพเป็นเมืองหลวง\nเชียงใหม่อยู่เหนือ", 2),
        ("半角です｡次の文｡", 2),
        ("It is 3.5. So", 2),
    ],
)
def test_sentences_end_in_every_script(text, count):
    spans = sentence_spans(text)
    assert len(spans) == count
    assert "".join(text[start:end] for start, end in spans) == text


@given(st.text(max_size=40))
def test_every_folded_word_has_its_place(text):
    folded = FoldedText(text)
    assert folded.line == line_of_words(text)
    at = 1
    for word in words(text):
        start, end = folded.in_original(*folded.source_range(at, at + len(word)))
        assert 0 <= start < end <= len(text)
        assert "".join(word).replace(" ", "") in "".join(words(text[start:end])) or not text.isascii()
        at += len(word) + 1


@given(st.text(alphabet="aA中国パ 。.!?\n人1๑กิ한글", max_size=40))
def test_sentences_of_any_script_are_the_whole_text(text):
    spans = sentence_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("8849", {"8849"}),
        ("8,849", {"8849", "8.849"}),
        ("1,00,000", {"100000"}),
        ("1.234,5", {"1234.5"}),
        ("0.125", {"0.125"}),
        ("5.8.1990", set()),
        ("٨٬٨٤٩", {"8849"}),
    ],
)
def test_a_number_has_its_readings(written, values):
    assert readings(written) == values


@pytest.mark.parametrize(
    ("subject", "answer"),
    [
        ("北京首都国际机场", "北京"),
        ("인천국제공항", "인천"),
        ("สนามบินกรุงเทพ", "กรุงเทพ"),
        ("ロンドン・ヒースロー空港", "ロンドン"),
        ("مطار بغداد الدولي", "بغداد"),
        ("Kansas City Airport", "Kansas"),
    ],
)
def test_a_name_holds_another_in_every_script(subject, answer):
    assert contains_name(subject, answer)
    assert reveals_object(subject, answer)


@pytest.mark.parametrize(
    ("subject", "answer"),
    [
        ("阿尔及利亚", "阿尔及尔"),
        ("突尼斯", "突尼斯市"),
        ("アルジェリア", "アルジェ"),
        ("알제리", "알제"),
        ("Algeria", "Algiers"),
        ("تونسي", "تونس"),
    ],
)
def test_a_name_gives_another_away_in_every_script(subject, answer):
    assert reveals_object(subject, answer)


@pytest.mark.parametrize(
    ("subject", "answer"),
    [
        ("保加利亚", "索非亚"),
        ("フランス", "パリ"),
        ("독일", "베를린"),
        ("法国", "巴黎"),
        ("スロベニア", "リュブリャナ"),
        ("ไทย", "กรุงเทพ"),
    ],
)
def test_other_names_give_nothing_away(subject, answer):
    assert not reveals_object(subject, answer)
