"""Grades a generation by rule, without a model and without a reference.

In:  the text that a model wrote, and a mapping of rules that must all hold.
Out: the reasons why it failed, in plain words; an empty list means that it passed.

    check("1. Bananas", {"list": 3})      ->  ["1 list item, 3 wanted"]
    check("Apples, pears and figs.", {"list": 3})      ->  []

| rule             | argument | holds when                                                                     |
|------------------|----------|--------------------------------------------------------------------------------|
| `list`           | count    | exactly so many items: numbered or bulleted lines, plain lines, or one line    |
|                  |          | separated by commas, semicolons or a last "and"/"or"                           |
| `numbered`       | count    | exactly so many lines start with a number, and the numbers run 1, 2, 3, ...    |
| `bullets`        | count    | exactly so many lines start with a bullet: - * + • or –                        |
| `lines`          | count    | exactly so many lines, not counting blank ones and an opening "Here it is:"    |
| `paragraphs`     | count    | exactly so many blocks set apart by blank lines, without an opening as above   |
| `sentences`      | count    | exactly so many sentences, counted by their final . ! or ?                     |
| `min_words`      | count    | at least so many words                                                         |
| `max_words`      | count    | at most so many words (and at least one)                                       |
| `length_of_base` | share    | at least this share of the base model's words (base model: at least one word)  |
| `json`           | keys     | there is a JSON object with these keys, bare, fenced or amid text; [] for any  |
| `contains`       | texts    | every text occurs, as whole words; capitals do not matter                      |
| `any_of`         | texts    | at least one of the texts occurs, in the same sense                            |
| `not_contains`   | texts    | none of the texts occurs, in the same sense                                    |
| `keyword_count`  | counts   | each text occurs at least so often, in the same sense: {rain: 2, sun: 1}       |
| `placeholders`   | count    | at least so many gaps to fill in, [like this]; a link is none                  |
| `highlights`     | count    | at least so many parts between stars, *like this* or **like this**             |
| `title`          | true     | there is a title in double angle brackets, <<like this>>, within one line      |
| `quoted`         | true     | the output has words; its first and last characters are double quotation marks |
| `no_commas`      | true     | there are words, and no comma of any script, not even within a number          |
| `language`       | code     | the output reads as this language: see below                                   |
| `equals`         | text     | the output is this text; capitals matter, quotes and full stop around it don't |
| `starts_with`    | text     | the output starts so, quotes aside; capitals do not matter                     |
| `ends_with`      | text     | the output ends so, quotes and full stop aside; capitals do not matter         |
| `uppercase`      | true     | there are letters, and all of them are capitals                                |
| `lowercase`      | true     | there are letters, and none of them is a capital                               |

Wherever texts are compared, line breaks and runs of spaces count as one space.

The language is that of more than half of the letters. Arabic (ar), Greek (el), Hebrew (he), Hindi (hi), Japanese (ja),
Korean (ko), Russian (ru), Thai (th) and Chinese (zh) are told by script alone: other languages of the same script are
taken for them, and Japanese without a kana for Chinese. English (en), French (fr), German (de), Italian (it),
Portuguese (pt) and Spanish (es) are told by the language whose function words ("the", "und", "est") are the most, and
at least one word in eight: that takes a sentence, a list of nouns is in no language. Dutch may pass for a neighbour.
"""

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ift.errors import IftError, nearest

_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"
_MARKER = re.compile(r"^(?P<indent>\s*)(?:[-*+\u2022\u2013]|(?:\*\*)?\(?\d{1,3}[.):]|\(?[a-zA-Z]\))\s+(?=\S)")
_BULLET = re.compile(r"^\s*[-*+\u2022\u2013]\s+(?=\S)")
_NUMBER = re.compile(r"^\s*(?:\*\*)?\(?(\d{1,3})[.):]\s*(?=\S)")
_INLINE_NUMBER = re.compile(r"(?:^|\s)\(?(\d{1,3})[.)]\s+(?=\S)")
_SEPARATOR = re.compile(r"\s*[,;]\s*(?:(?:and|or|&)\s+)?|\s+(?:and|or|&)\s+", re.IGNORECASE)
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\w[^\[\]\n]*\](?!\()")
_HIGHLIGHT = re.compile(r"(?<![\w*])(\*{1,2})(?=[^\s*])[^*\n]*\w[^*\n]*(?<=\S)\1(?![\w*])")
_TITLE = re.compile(r"<<[^<>\n]*\w[^<>\n]*>>")
_DOUBLE_QUOTES = '"\u201c\u201d\u201e'
_COMMAS = ",\u060c\u3001\uff0c"

_LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pt": "Portuguese",
    "ru": "Russian",
    "th": "Thai",
    "zh": "Chinese",
}
_SCRIPTS = {  # how Unicode's names of letters begin, and the language that stands for the script
    "ARABIC": "ar",
    "CJK": "zh",
    "CYRILLIC": "ru",
    "DEVANAGARI": "hi",
    "GREEK": "el",
    "HANGUL": "ko",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "KATAKANA-HIRAGANA": "ja",  # the mark of a long vowel
    "THAI": "th",
}
# A word stands with each language that uses it often; rare senses, such as Italian "o", are left out, since a short
# sentence of a neighbour would else be a tie. French and Italian are split at the apostrophe: "l'eau", "c'est".
_FUNCTION_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "de": "der die das den dem des ein eine einen einem einer eines und oder aber ist sind war waren hat haben "
        "habe wird werden kann ich du er sie es wir ihr nicht kein keine auch mit von vom zu zum zur im in an am auf "
        "für aus bei nach über wie was wenn weil dass sich als so sehr mein meine sein seine man noch nur durch vor "
        "heute",
        "en": "the a an and or but is are was were am be been it its this that these those they them he she we you i "
        "of to in on at for with from by as not no have has had do does can will would my your his her their our me "
        "there what when which who if so because very into than some about today",
        "es": "el la los las un una unos unas de del y pero es son está están soy estoy era fue ha han he hay ser "
        "que no se su sus mi mis me te lo le les nos yo tú él ella ellos nosotros en con por para al a como más muy "
        "sin cuando también si porque este esta donde mucho hoy hace usted",
        "fr": "le la les l un une des du de d et ou mais est sont était suis a ont ai être il elle ils elles je j tu "
        "nous vous on ne n pas que qu qui ce c cette ces se son sa ses mon ma mes leur leurs dans en sur pour par "
        "avec au aux à plus très comme y sans où quand si fait aujourd hui",
        "it": "il lo la i gli le l un uno una di d del dello della dell dei degli delle e ma è sono era ha ho hanno "
        "che non si ci c mi ti se suo sua mio mia io tu lui lei noi in nel nella nell con per da dal dalla al alla "
        "all a su sul sulla come più molto anche questo questa quando perché essere dove oggi fa",
        "pt": "o a os as um uma uns umas de do da dos das e ou mas é são está era foi tem têm há ser que não se seu "
        "sua seus suas eu você ele ela eles nós em no na nos nas com por para pelo pela ao à como mais muito também "
        "quando porque este esta isso meu minha me onde hoje faz",
    }.items()
}


def check(output: str, rules: Mapping[str, Any], base: str | None = None) -> list[str]:
    """The reasons why `output` breaks `rules`, one a broken rule; empty when it keeps them all.

    `base` is what the base model wrote on the same item; None where `output` is the base model's own.
    """
    validate(rules)
    if share := rules.get("length_of_base"):
        rules = {**rules, "length_of_base": max(1, math.ceil(share * len(_words(base or ""))))}
    reasons = (_RULES[name][1](output, wanted) for name, wanted in rules.items())
    return [reason for reason in reasons if reason is not None]


def validate(rules: Any) -> None:
    """Refuses rules that do not exist, or whose argument has the wrong type."""
    if not isinstance(rules, Mapping) or not rules:
        raise IftError(f"`check` is {rules!r}", wanted="a mapping of one or more rules, such as {list: 3}")
    for name, argument in rules.items():
        if name not in _RULES:
            raise IftError(
                f"unknown rule `{name}` in `check`",
                wanted=f"one of {', '.join(_RULES)}",
                hint=nearest(name, _RULES),
            )
        kind = _RULES[name][0]
        if not _ARGUMENTS[kind](argument):
            raise IftError(f"rule `{name}` in `check` has the argument {argument!r}", wanted=kind)


# --- what the rules look at -------------------------------------------------------------------------------


def list_items(output: str) -> list[str]:
    """The items of the list in `output`, without bullets and numbers; one item when there is no list."""
    lines = _lines(_FENCE.sub("", output))
    marked = [(len(found["indent"]), line[found.end() :]) for line in lines if (found := _MARKER.match(line))]
    if len(marked) > 1 or (marked and not _inline_items(output)):
        outermost = min(indent for indent, _ in marked)
        return [text.strip(" *") for indent, text in marked if indent == outermost]
    if inline := _inline_items(output):
        return inline
    blocks = [_lines(block) for block in re.split(r"\n\s*\n", "\n".join(_body(output)))]
    longest = max(blocks, key=len, default=[])
    if len(longest) > 1:
        return [line.strip() for line in longest]
    items = _split(blocks[0][0]) if blocks and blocks[0] else []
    if len(blocks) > 1 and (len(items) < 2 or max(len(_words(item)) for item in items) > 6):
        return [line.strip() for block in blocks for line in block]  # items set apart by blank lines
    return items


def find_object(output: str) -> dict[str, Any] | None:
    """The first JSON object in `output`, whatever text or fence stands around it."""
    decoder = json.JSONDecoder()
    start = output.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(output, start)
        except (ValueError, RecursionError):
            start = output.find("{", start + 1)
            continue
        return found if isinstance(found, dict) else None
    return None


def language_of(output: str) -> str | None:
    """The code of the language that `output` reads as; None where the letters or the words do not tell."""
    text = unicodedata.normalize("NFKC", output).casefold()
    scripts = Counter(unicodedata.name(char, "").split(" ")[0] for char in text if char.isalpha())
    if 2 * scripts["LATIN"] > scripts.total():
        return _latin_language(text)
    found = Counter[str]()
    for script, count in scripts.items():
        found[_SCRIPTS.get(script, "")] += count
    if found["ja"]:  # kana are Japanese alone, and what stands beside them is not Chinese
        found["ja"] += found.pop("zh", 0)
    language, count = max(found.items(), key=lambda item: item[1], default=("", 0))
    return language if language and 2 * count > scripts.total() else None


def _latin_language(text: str) -> str | None:
    words = Counter(re.findall(r"[^\W\d_]+", text))
    known = {
        language: sum(count for word, count in words.items() if word in function_words)
        for language, function_words in _FUNCTION_WORDS.items()
    }
    best, second = sorted(known, key=lambda language: known[language], reverse=True)[:2]
    return best if known[best] > known[second] and 8 * known[best] >= words.total() else None


def _inline_items(output: str) -> list[str]:
    """Items of a list such as "1. Apples 2. Pears", numbered from 1 within one line."""
    lines = _lines(output)
    marks = list(_INLINE_NUMBER.finditer(lines[0])) if len(lines) == 1 else []
    if len(marks) < 2 or [int(mark[1]) for mark in marks] != list(range(1, len(marks) + 1)):
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(lines[0])]
    return [lines[0][mark.end() : end].strip(" ,;") for mark, end in zip(marks, ends, strict=True)]


def _split(line: str) -> list[str]:
    """Items of a line such as "Three fruits are: apples, pears and figs."."""
    text = re.sub(r"^[^:]*:\s+", "", _trim(line))
    return [item for item in _SEPARATOR.split(text) if _words(item)]


def _body(output: str) -> list[str]:
    """The lines of `output` without fences, and without an opening line that ends in a colon."""
    lines = _FENCE.sub("", output).strip().splitlines()
    opening = len(lines) > 1 and lines[0].rstrip().endswith(":")
    return "\n".join(lines[1:]).strip("\n").splitlines() if opening else lines


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _words(text: str) -> list[str]:
    return [word for word in text.split() if any(char.isalnum() for char in word)]


def _sentences(text: str) -> list[str]:
    parts = re.split(rf"(?<=[.!?])[{_QUOTES})]*(?:\s+|$)", text)
    return [part for part in parts if _words(part)]


def _squash(text: str) -> str:
    return " ".join(text.split())


def _trim(text: str) -> str:
    """`text` without the white space, quotes and final full stop around it."""
    text = _squash(text).strip(_QUOTES + " ")
    return text.removesuffix(".").strip(_QUOTES + " ")


def _times(text: str, wanted: str) -> int:
    """How often `wanted` occurs in `text`, as whole words."""
    wanted = _squash(wanted)
    left = r"(?<!\w)" if wanted[0].isalnum() else ""
    right = r"(?!\w)" if wanted[-1].isalnum() else ""
    return len(re.findall(left + re.escape(wanted) + right, _squash(text), re.IGNORECASE))


# --- the rules: each returns why it is broken, or nothing -------------------------------------------------


def _count(found: int, wanted: int, noun: str) -> str | None:
    return None if found == wanted else f"{_many(found, noun)}, {wanted} wanted"


def _at_least(found: int, wanted: int, noun: str) -> str | None:
    return None if found >= wanted else f"{_many(found, noun)}, at least {wanted} wanted"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _list(output: str, wanted: int) -> str | None:
    return _count(len(list_items(output)), wanted, "list item")


def _numbered(output: str, wanted: int) -> str | None:
    numbers = [int(found[1]) for line in _lines(output) if (found := _NUMBER.match(line))]
    if numbers == list(range(1, len(numbers) + 1)):
        return _count(len(numbers), wanted, "numbered line")
    return f"lines are numbered {', '.join(map(str, numbers))}, 1 to {wanted} wanted"


def _plain_lines(output: str, wanted: int) -> str | None:
    return _count(sum(bool(line.strip()) for line in _body(output)), wanted, "line")


def _bullets(output: str, wanted: int) -> str | None:
    return _count(sum(bool(_BULLET.match(line)) for line in _lines(output)), wanted, "bullet")


def _paragraphs(output: str, wanted: int) -> str | None:
    blocks = re.split(r"\n\s*\n", "\n".join(_body(output)))
    return _count(sum(bool(_words(block)) for block in blocks), wanted, "paragraph")


def _min_words(output: str, wanted: int) -> str | None:
    return _at_least(len(_words(output)), wanted, "word")


def _max_words(output: str, wanted: int) -> str | None:
    count = len(_words(output))
    return None if 1 <= count <= wanted else f"{count} words, 1 to {wanted} wanted"


def _json(output: str, keys: list[str]) -> str | None:
    found = find_object(output)
    if found is None:
        return "no JSON object"
    missing = [key for key in keys if key not in found]
    return f"the JSON object lacks {_quoted(missing)}" if missing else None


def _contains(output: str, texts: list[str]) -> str | None:
    missing = [text for text in texts if not _times(output, text)]
    return f"lacks {_quoted(missing)}" if missing else None


def _any_of(output: str, texts: list[str]) -> str | None:
    return None if any(_times(output, text) for text in texts) else f"has none of {_quoted(texts)}"


def _not_contains(output: str, texts: list[str]) -> str | None:
    present = [text for text in texts if _times(output, text)]
    return f"has {_quoted(present)}" if present else None


def _keyword_count(output: str, wanted: dict[str, int]) -> str | None:
    found = {text: _times(output, text) for text in wanted}
    few = [
        f'"{text}" {found[text]} of {count} times' for text, count in wanted.items() if found[text] < count
    ]
    return f"has {', '.join(few)}" if few else None


def _placeholders(output: str, wanted: int) -> str | None:
    return _at_least(len(_PLACEHOLDER.findall(output)), wanted, "placeholder")


def _highlights(output: str, wanted: int) -> str | None:
    return _at_least(len(_HIGHLIGHT.findall(output)), wanted, "highlight")


def _title(output: str, _: bool) -> str | None:
    return None if _TITLE.search(output) else "no title in double angle brackets"


def _in_quotes(output: str, _: bool) -> str | None:
    text = output.strip()
    around = _words(text) and text[0] in _DOUBLE_QUOTES and text[-1] in _DOUBLE_QUOTES
    return None if around else "no double quotation marks around it"


def _no_commas(output: str, _: bool) -> str | None:
    if not _words(output):
        return "has no words"
    return "has commas" if any(comma in output for comma in _COMMAS) else None


def _language(output: str, wanted: str) -> str | None:
    found = language_of(output)
    if found == wanted:
        return None
    return f"reads as {_LANGUAGES[found] if found else 'no known language'}, {_LANGUAGES[wanted]} wanted"


def _equals(output: str, wanted: str) -> str | None:
    return None if _trim(output) == _trim(wanted) else f"is not exactly {_quoted([wanted])}"


def _starts_with(output: str, wanted: str) -> str | None:
    holds = _trim(output).casefold().startswith(_trim(wanted).casefold())
    return None if holds else f"does not start with {_quoted([wanted])}"


def _ends_with(output: str, wanted: str) -> str | None:
    holds = _trim(output).casefold().endswith(_trim(wanted).casefold())
    return None if holds else f"does not end with {_quoted([wanted])}"


def _uppercase(output: str, _: bool) -> str | None:
    return _case(output, "small letters", str.islower)


def _lowercase(output: str, _: bool) -> str | None:
    return _case(output, "capital letters", str.isupper)


def _case(output: str, noun: str, unwanted: Callable[[str], bool]) -> str | None:
    if not any(char.isalpha() for char in output):
        return "has no letters"
    return f"has {noun}" if any(unwanted(char) for char in output) else None


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and bool(text.strip()) for text in value)


_COUNT, _TEXT, _TRUE = "a whole number of 1 or more", "a text that is not empty", "true"
_TEXTS, _KEYS = "a list of one or more texts", "a list of keys, or [] for any object"
_COUNTS = "a mapping of texts to whole numbers of 1 or more"
_SHARE = "a share above 0, at most 1"
_CODE = f"one of {', '.join(_LANGUAGES)}"

_ARGUMENTS: dict[str, Callable[[Any], bool]] = {
    _COUNT: _is_count,
    _TEXT: lambda value: isinstance(value, str) and bool(_trim(value)),
    _TRUE: lambda value: value is True,
    _TEXTS: lambda value: _is_texts(value) and bool(value),
    _KEYS: _is_texts,
    _COUNTS: lambda value: (
        isinstance(value, dict)
        and bool(value)
        and _is_texts([*value])
        and all(map(_is_count, value.values()))
    ),
    _CODE: lambda value: isinstance(value, str) and value in _LANGUAGES,
    _SHARE: lambda value: type(value) in (int, float) and 0 < value <= 1,
}

_RULES: dict[str, tuple[str, Callable[[str, Any], str | None]]] = {
    "list": (_COUNT, _list),
    "numbered": (_COUNT, _numbered),
    "bullets": (_COUNT, _bullets),
    "lines": (_COUNT, _plain_lines),
    "paragraphs": (_COUNT, _paragraphs),
    "sentences": (_COUNT, lambda output, wanted: _count(len(_sentences(output)), wanted, "sentence")),
    "min_words": (_COUNT, _min_words),
    "max_words": (_COUNT, _max_words),
    "length_of_base": (_SHARE, _min_words),  # `check` turns the share into a count of words
    "json": (_KEYS, _json),
    "contains": (_TEXTS, _contains),
    "any_of": (_TEXTS, _any_of),
    "not_contains": (_TEXTS, _not_contains),
    "keyword_count": (_COUNTS, _keyword_count),
    "placeholders": (_COUNT, _placeholders),
    "highlights": (_COUNT, _highlights),
    "title": (_TRUE, _title),
    "quoted": (_TRUE, _in_quotes),
    "no_commas": (_TRUE, _no_commas),
    "language": (_CODE, _language),
    "equals": (_TEXT, _equals),
    "starts_with": (_TEXT, _starts_with),
    "ends_with": (_TEXT, _ends_with),
    "uppercase": (_TRUE, _uppercase),
    "lowercase": (_TRUE, _lowercase),
}
