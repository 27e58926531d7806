"""The rules by which a generation is graded: what passes, what fails, and how the failure is worded."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.errors import IftError
from ift.tasks.checks import check, find_object, language_of, list_items, validate

WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8).filter(
    lambda word: word not in {"and", "or"}
)
WORDS = st.lists(WORD, min_size=2, max_size=6)


@pytest.mark.parametrize(
    ("output", "rules"),
    [
        ("Apples, bananas and oranges.", {"list": 3}),
        ("Apples, bananas, and oranges", {"list": 3}),
        ("Three fruits are: apples, bananas & oranges.", {"list": 3}),
        ("Here you are:\n\nApples, pears, figs.\n\nAll of them are healthy.", {"list": 3}),
        (
            "1. Apples: red, sweet\n\n2. Pears\n\n3. Figs\n\nThese fruits are healthy, tasty and cheap.",
            {"list": 3},
        ),
        ("1. Apples 2. Pears 3. Figs", {"list": 3}),
        ("**1. Apples**\n   - red\n**2. Pears**", {"list": 2, "numbered": 2}),
        ("- Apples\n  - red\n  - sweet\n- Pears", {"list": 2}),
        ("apple\npear\nfig", {"list": 3, "lines": 3}),
        ("Days:\n\nMonday: work\nSunday: rest\n\nThese are two days.", {"list": 2}),
        ("1. Boil water.\n2. Add tea.", {"numbered": 2}),
        ("Here is a poem:\n\nRoses are red,\n\nviolets are blue", {"lines": 2}),
        ("It is warm. Is it? Yes!", {"sentences": 3}),
        ('He said "Stop." Then he left.', {"sentences": 2}),
        ('```json\n{"name": "Jo", "age": 3}\n```\nThere it is {so}.', {"json": ["name", "age"]}),
        ("a { b {} c", {"json": []}),
        ("The capital is PARIS!", {"contains": ["Paris"], "not_contains": ["London"]}),
        ("night,\n day", {"contains": ["night, day"]}),
        ("No.", {"any_of": ["yes", "no"], "max_words": 1}),
        ("\u201cThe cat sits.\u201d", {"equals": "The cat sits."}),
        ("the cat sits", {"equals": "the cat sits."}),
        ('"Once upon a time there was a fox."', {"starts_with": "once upon a time", "ends_with": "a fox"}),
        ("HELLO, YOU 2!", {"uppercase": True, "max_words": 3, "min_words": 3}),
        ("good morning", {"lowercase": True}),
        ("Here you are:\n- salt\n* oil\n• tea", {"bullets": 3}),
        ("- **salt**\n\n- *oil* and - perhaps - tea", {"bullets": 2}),
        ("One line,\nanother line.\n \n\nThe second.", {"paragraphs": 2}),
        ("Here it is:\n\nOne.\n\n***\n\nTwo.", {"paragraphs": 2}),
        ("Rain, RAIN and more rain. Sun!", {"keyword_count": {"rain": 3, "sun": 1}}),
        ("Dear [your name],\nmeet me in [place].", {"placeholders": 2}),
        ("A *red* and a **blue one**.", {"highlights": 2}),
        ("<<The Wind>>\nIt blows.", {"title": True}),
        (' "Welcome!"\n', {"quoted": True}),
        ("“Welcome!”", {"quoted": True}),
        ("Fish and fruit are sold.", {"no_commas": True}),
        ("Le chat dort sur la chaise.", {"language": "fr"}),
    ],
)
def test_passes(output: str, rules: dict[str, object]) -> None:
    assert check(output, rules) == []


@pytest.mark.parametrize(
    ("output", "rules", "reason"),
    [
        ("1. Bananas", {"list": 3}, "1 list item, 3 wanted"),
        ("Bananas", {"list": 3}, "1 list item, 3 wanted"),
        ("", {"list": 3}, "0 list items, 3 wanted"),
        ("1. a\n2. b\n3. c\n4. d", {"list": 3}, "4 list items, 3 wanted"),
        ("- a\n- b", {"numbered": 2}, "0 numbered lines, 2 wanted"),
        ("1. a\n3. b", {"numbered": 2}, "lines are numbered 1, 3, 1 to 2 wanted"),
        ("one\n\n", {"lines": 2}, "1 line, 2 wanted"),
        ("One. Two.", {"sentences": 1}, "2 sentences, 1 wanted"),
        ("positive", {"min_words": 20}, "1 word, at least 20 wanted"),
        ("one two three", {"max_words": 2}, "3 words, 1 to 2 wanted"),
        ("...", {"max_words": 2}, "0 words, 1 to 2 wanted"),
        ("[1]", {"json": []}, "no JSON object"),
        ('{"name": "Jo', {"json": []}, "no JSON object"),
        ('{"name": 1}', {"json": ["name", "age"]}, 'the JSON object lacks "age"'),
        ("Parisian", {"contains": ["Paris"]}, 'lacks "Paris"'),
        ("maybe", {"any_of": ["yes", "no"]}, 'has none of "yes", "no"'),
        ("in Berlin", {"not_contains": ["berlin"]}, 'has "berlin"'),
        ("Apple", {"equals": "apple"}, 'is not exactly "apple"'),
        ("Well, once", {"starts_with": "Once"}, 'does not start with "Once"'),
        ("a foxglove", {"ends_with": "fox"}, 'does not end with "fox"'),
        ("HELLo", {"uppercase": True}, "has small letters"),
        ("123", {"uppercase": True}, "has no letters"),
        ("hellO", {"lowercase": True}, "has capital letters"),
        ("1. salt\n2. oil", {"bullets": 2}, "0 bullets, 2 wanted"),
        ("**Salt** is\n-5 or -salt", {"bullets": 1}, "0 bullets, 1 wanted"),
        ("One line,\nanother line.", {"paragraphs": 2}, "1 paragraph, 2 wanted"),
        ("", {"paragraphs": 1}, "0 paragraphs, 1 wanted"),
        (
            "rain and rainy sun",
            {"keyword_count": {"rain": 2, "sun": 1, "fog": 1}},
            'has "rain" 1 of 2 times, "fog" 0 of 1 times',
        ),
        ("Dear [name], see [this](url) [ ].", {"placeholders": 2}, "1 placeholder, at least 2 wanted"),
        ("* 5*3*2 and *so on", {"highlights": 1}, "0 highlights, at least 1 wanted"),
        ("<The Wind> << >>", {"title": True}, "no title in double angle brackets"),
        ('He said "stop"', {"quoted": True}, "no double quotation marks around it"),
        ('"Stop", he said', {"quoted": True}, "no double quotation marks around it"),
        ('""', {"quoted": True}, "no double quotation marks around it"),
        ("Fish, fruit", {"no_commas": True}, "has commas"),
        ("1,000 fish", {"no_commas": True}, "has commas"),
        ("魚、肉", {"no_commas": True}, "has commas"),
        ("...", {"no_commas": True}, "has no words"),
        ("The cat sleeps.", {"language": "fr"}, "reads as English, French wanted"),
        ("Paris", {"language": "fr"}, "reads as no known language, French wanted"),
    ],
)
def test_fails_with_a_reason(output: str, rules: dict[str, object], reason: str) -> None:
    assert check(output, rules) == [reason]


def test_every_broken_rule_is_named() -> None:
    rules = {"list": 2, "uppercase": True, "contains": ["apple"]}
    assert check("pear", rules) == ["1 list item, 2 wanted", "has small letters", 'lacks "apple"']


@pytest.mark.parametrize(
    ("output", "base", "reasons"),
    [
        ("one two three", "one two three four five", []),
        ("one two", "one two three four five", ["2 words, at least 3 wanted"]),
        ("positive", "The sea is deep, wide and full of life.", ["1 word, at least 5 wanted"]),
        ("one", "", []),
        ("", "", ["0 words, at least 1 wanted"]),
        ("one", None, []),
        ("...", None, ["0 words, at least 1 wanted"]),
    ],
)
def test_length_is_compared_with_the_base_models(output: str, base: str | None, reasons: list[str]) -> None:
    assert check(output, {"length_of_base": 0.5}, base) == reasons


@given(WORDS)
def test_an_answer_is_as_long_as_itself(words: list[str]) -> None:
    assert check(" ".join(words), {"length_of_base": 1}, " ".join(words)) == []


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"lsit": 3},
            "unknown rule `lsit` in `check`\n"
            "  wanted: one of list, numbered, bullets, lines, paragraphs, sentences, min_words, max_words, "
            "length_of_base, json, "
            "contains, any_of, not_contains, keyword_count, placeholders, highlights, title, quoted, "
            "no_commas, language, equals, starts_with, ends_with, uppercase, lowercase\n"
            "  next:   did you mean `list`?",
        ),
        ({"list": "3"}, "rule `list` in `check` has the argument '3'\n  wanted: a whole number of 1 or more"),
        (
            {"list": True},
            "rule `list` in `check` has the argument True\n  wanted: a whole number of 1 or more",
        ),
        (
            {"length_of_base": 0},
            "rule `length_of_base` in `check` has the argument 0\n  wanted: a share above 0, at most 1",
        ),
        (
            {"length_of_base": True},
            "rule `length_of_base` in `check` has the argument True\n  wanted: a share above 0, at most 1",
        ),
        ({"lines": 0}, "rule `lines` in `check` has the argument 0\n  wanted: a whole number of 1 or more"),
        (
            {"contains": "a"},
            "rule `contains` in `check` has the argument 'a'\n  wanted: a list of one or more texts",
        ),
        (
            {"any_of": []},
            "rule `any_of` in `check` has the argument []\n  wanted: a list of one or more texts",
        ),
        (
            {"json": [1]},
            "rule `json` in `check` has the argument [1]\n  wanted: a list of keys, or [] for any object",
        ),
        (
            {"equals": " ."},
            "rule `equals` in `check` has the argument ' .'\n  wanted: a text that is not empty",
        ),
        (
            {"language": "French"},
            "rule `language` in `check` has the argument 'French'\n"
            "  wanted: one of ar, de, el, en, es, fr, he, hi, it, ja, ko, pt, ru, th, zh",
        ),
        (
            {"keyword_count": {"rain": 0}},
            "rule `keyword_count` in `check` has the argument {'rain': 0}\n"
            "  wanted: a mapping of texts to whole numbers of 1 or more",
        ),
        (
            {"keyword_count": ["rain"]},
            "rule `keyword_count` in `check` has the argument ['rain']\n"
            "  wanted: a mapping of texts to whole numbers of 1 or more",
        ),
        ({"uppercase": False}, "rule `uppercase` in `check` has the argument False\n  wanted: true"),
        ({}, "`check` is {}\n  wanted: a mapping of one or more rules, such as {list: 3}"),
        ([3], "`check` is [3]\n  wanted: a mapping of one or more rules, such as {list: 3}"),
    ],
)
def test_wrong_rules_are_refused(rules: object, message: str) -> None:
    with pytest.raises(IftError) as error:
        validate(rules)
    assert str(error.value) == message


@given(WORDS)
def test_a_list_is_the_same_list_in_every_form(words: list[str]) -> None:
    forms = [
        "\n".join(f"{place}. {word}" for place, word in enumerate(words, 1)),
        "\n".join(f"- {word}" for word in words),
        "\n".join(words),
        "\n\n".join(words),
        ", ".join(words),
        ", ".join(words[:-1]) + f" and {words[-1]}.",
        "They are:\n\n" + "\n".join(f"* {word}" for word in words) + "\n\nThat is all.",
        " ".join(f"{place}. {word}" for place, word in enumerate(words, 1)),
    ]
    assert [list_items(form) for form in forms] == [words] * len(forms)


@given(st.dictionaries(WORD, st.integers() | st.text(max_size=5), max_size=4), WORD, WORD)
def test_an_object_is_found_amid_text(value: dict[str, object], before: str, after: str) -> None:
    assert find_object(f"{before} {json.dumps(value)} {after}") == value
    assert (
        check(f"{before}\n```json\n{json.dumps(value, indent=2)}\n```\n{after}", {"json": list(value)}) == []
    )


@given(WORDS)
def test_a_copy_is_equal_and_holds_its_own_words(words: list[str]) -> None:
    text = " ".join(words)
    rules = {"equals": text, "contains": words, "starts_with": words[0], "ends_with": words[-1]}
    assert check(f'"{text}."', {**rules, "min_words": len(words), "max_words": len(words)}) == []


SENTENCES = {
    "ar": ["عاصمة فرنسا هي باريس.", "صباح الخير"],
    "de": ["Die Hauptstadt von Frankreich ist Paris.", "Es regnet heute.", "Wir gehen morgen ins Kino."],
    "el": ["Πρωτεύουσα της Γαλλίας είναι το Παρίσι.", "Καλημέρα"],
    "en": ["The capital of France is Paris.", "It's raining today.", "Dogs are friendly animals."],
    "es": ["La capital de Francia es París.", "Hoy hace frío.", "Me llamo Ana y vivo en Roma."],
    "fr": ["La capitale de la France est Paris.", "Il fait froid aujourd’hui.", "J'aime lire le soir."],
    "he": ["בירת צרפת היא פריז."],
    "hi": ["फ़्रांस की राजधानी पेरिस है।"],
    "it": ["La capitale della Francia è Parigi.", "Oggi fa freddo.", "Mi chiamo Anna e vivo a Roma."],
    "ja": ["フランスの首都はパリです。", "日本の首都は東京です", "iPhone はとても便利な電話です。", "カメラ"],
    "ko": ["프랑스의 수도는 파리입니다."],
    "pt": ["A capital da França é Paris.", "Hoje faz frio.", "O sol brilha."],
    "ru": ["Столица Франции — Париж.", "Python — это язык программирования."],
    "th": ["เมืองหลวงของฝรั่งเศสคือปารีส"],
    "zh": ["法国的首都是巴黎。", "早上好"],
}
ANY_SENTENCE = st.sampled_from([(code, text) for code, texts in SENTENCES.items() for text in texts])


@given(ANY_SENTENCE, st.integers(1, 5), st.sampled_from([str, str.upper, str.lower]))
def test_a_language_is_told_whatever_the_length_and_case(
    sentence: tuple[str, str], times: int, case: Callable[[str], str]
) -> None:
    language, text = sentence
    assert language_of(case("\n".join([text] * times))) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12, 13!",
        "Red, green, blue.",  # nouns and adjectives alone
        "Shades of red, green, blue, white, black, brown, grey.",  # one function word in nine
        "La, un, una.",  # as Spanish as it is Italian
        "дома home",  # no script has more than half of the letters
    ],
)
def test_a_language_that_cannot_be_told_is_none(text: str) -> None:
    assert language_of(text) is None


@given(WORDS)
def test_parts_are_counted_in_any_number(words: list[str]) -> None:
    number = len(words)
    for rule, text in {
        "bullets": "\n".join(f"- {word}" for word in words),
        "paragraphs": "\n\n".join(words),
        "placeholders": " ".join(f"[{word}]" for word in words),
        "highlights": " ".join(f"*{word}*" for word in words),
    }.items():
        assert check(text, {rule: number}) == []
        assert check(text, {rule: number + 1}) != []


@given(WORD, st.integers(1, 6))
def test_a_keyword_is_counted_as_often_as_it_stands(word: str, times: int) -> None:
    text = ", ".join([word, f"{word}x"] * times)
    assert check(text, {"keyword_count": {word: times}}) == []
    assert check(text, {"keyword_count": {word: times + 1}}) == [f'has "{word}" {times} of {times + 1} times']


EVERY_RULE: dict[str, Any] = {
    "list": 3,
    "numbered": 3,
    "bullets": 1,
    "lines": 3,
    "paragraphs": 1,
    "sentences": 1,
    "min_words": 3,
    "max_words": 3,
    "length_of_base": 0.5,
    "json": ["a"],
    "contains": ["a"],
    "any_of": ["a"],
    "not_contains": ["a"],
    "keyword_count": {"a": 2},
    "placeholders": 1,
    "highlights": 1,
    "title": True,
    "quoted": True,
    "no_commas": True,
    "language": "en",
    "equals": "a",
    "starts_with": "a",
    "ends_with": "a",
    "uppercase": True,
    "lowercase": True,
}
OUTPUT = st.text(max_size=200) | st.lists(
    st.sampled_from(
        ["a", "A", "the", "<<a>>", "[a]", "*a*", '"', ",", ". ", "- a", "1. a", "\n", "\n\n", '{"a": 1}']
    )
).map("".join)


def test_every_rule_is_tried_below() -> None:
    with pytest.raises(IftError) as error:
        validate({"none": 1})
    assert error.value.wanted == f"one of {', '.join(EVERY_RULE)}"


@given(OUTPUT, st.permutations(list(EVERY_RULE)))
def test_each_rule_judges_alone_and_their_order_does_not_matter(output: str, order: list[str]) -> None:
    alone = {name: check(output, {name: EVERY_RULE[name]}, "a b c d") for name in order}
    assert all(len(reasons) <= 1 and all(reasons) for reasons in alone.values())
    together = check(output, {name: EVERY_RULE[name] for name in order}, "a b c d")
    assert together == [reason for name in order for reason in alone[name]]
