"""How an answer is graded: one number an item, so that intervals and paired comparisons need nothing else.

In:  the name of a metric, what came, and what was expected.
Out: a score from 0 to 1; the reference itself always scores 1 (of `code`, the reference is the tests).

    grade("exact_match", "Paris.", "paris")                             # 1.0
    grade("token_f1", "the tall tower", "tower")                        # 0.67
    grade("number", "6 * 12 = 72\\nThe answer is 72.", "72")             # 1.0
    grade("span_f1", "- Oslo\\n- Lima", "lima; oslo; rome")              # 0.8
    grade("code", "def one(): return 1", "assert one() == 1", allow_code=True)    # 1.0

`accuracy` is graded by the evaluation itself, from the likelihood of the choices; here it is an exact match. Scores
that no single item has, such as the BLEU of a corpus, are in scores.py.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from ift.tasks.code import pass_at_1

# "The answer is 72", "Final answer: 72", "**Answer:** 72"
_ANNOUNCED = re.compile(r"\banswer\b(?:\s+is\b\s*:?|\s*:)", re.I)
# what announces a number besides: GSM8K's own mark
_ANNOUNCED_NUMBER = re.compile(rf"{_ANNOUNCED.pattern}|####", re.I)
# White space and marks of emphasis around an announced answer.
_AROUND = string.whitespace + "*_`"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
# The characters of Chinese and Japanese, which put no space between words, count as a word each.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u3040-\u30ff\u3400-\u9fff])[^\W_])+")

# At most so many digits: Python refuses to convert thousands of them.
_DIGITS = r"[0-9]{1,400}"
_NUMBER = re.compile(
    rf"""
    (?<![^\W_])(?<![0-9]\.)            # not the 2 of H2O, not the 3 of 1.2.3
    (?P<minus>(?<![\w.)\]])[-−])?      # a sign, not the hyphen of 3-4
    (?:(?:US)?[$€£])?
    (?P<minus_behind>[-−])?            # $-5
    (?:
        (?:(?P<whole>{_DIGITS})[ ]+)?  # 3/4, 1 1/2
        (?P<over>{_DIGITS})/(?P<under>0{{0,9}}[1-9][0-9]{{0,400}})(?!\.?[0-9])
      | (?P<decimal>(?:[0-9]{{1,3}}(?:,[0-9]{{3}}){{1,99}}(?![0-9])|{_DIGITS})(?:\.{_DIGITS})?|(?<!\.)\.{_DIGITS})
        (?P<power>[eE][-+]?[0-9]{{1,3}}(?!\w))?
    )
    """,
    re.VERBOSE,
)

# What of a number is no punctuation, and characters of nobody's that stand for it.
_SIGN, _KEPT_SIGN = re.compile(r"(?<![\w.)\]])[-−](?=\.?[0-9])"), "\ue000"
_POINT, _KEPT_POINT = re.compile(r"(?<=[0-9])\.(?=[0-9])|(?<![\w.])\.(?=[0-9])"), "\ue001"

_SUM = re.compile(
    r"(?:[0-9x\s.,$€£%()+*/×÷·−-]*(?<!\()=)+", re.I
)  # in front of what it comes to: "3 + 4 = 7"

_SEPARATORS = re.compile(r"[;\n]|(?<![0-9]),|,(?![0-9])")  # the comma in 1,000 separates nothing
_BULLET = re.compile(r"^(?:[•·]\s*|(?:[-–*+]|[0-9]{1,3}[.)]|\([0-9]{1,3}\))\s+)")
_QUOTES = "\"'`«»\u2018\u2019\u201c\u201d"
_LABEL = re.compile(r"^([^:;,]+): ")


def grade(metric: str, output: str, reference: str, *, allow_code: bool = False) -> float:
    """The score of `output`, from 0 to 1, by one of `METRICS`.

    Texts that differ in white space alone score 1. Of texts in which the metric finds nothing to compare (no word, no
    number, no pair of words), others score 0, except that `number` then falls back to `exact_match`.

    `code` runs what the model wrote against the tests in `reference`, and only with `allow_code`: see code.py.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric `{metric}`; there are {', '.join(METRICS)}")
    if metric == "code":
        return pass_at_1(output, reference, allow_code=allow_code)
    if output.split() == reference.split():
        return 1.0
    return min(1.0, max(0.0, round(_GRADERS[metric](output, reference), 12)))  # no 1.0000000000000004


def final_answer(text: str) -> str:
    """What a reasoned answer comes down to.

    It stands on the line that follows the last "answer is" or "answer:", be it the rest of that line or, where
    nothing is left of it, the next one with text. Where no answer is announced so, it is the last line with text.
    """
    for match in reversed(list(_ANNOUNCED.finditer(text))):
        if lines := _lines(text[match.end() :]):
            return lines[0]
    lines = _lines(text)
    return lines[-1] if lines else ""


def _lines(text: str) -> list[str]:
    return [line for line in (line.strip(_AROUND) for line in text.splitlines()) if line]


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces (SQuAD's normalisation, Rajpurkar et al. 2016, keeping articles)."""
    return " ".join("".join(c for c in text.lower() if c not in string.punctuation).split())


def exact_match(output: str, expected: str) -> float:
    """1.0 where the two are equal after `normalise`, which here leaves numbers their sign and their decimal point.

    A text of which nothing is left, such as `+`, is compared as it stands.
    """
    one, other = (normalise(_POINT.sub(_KEPT_POINT, _SIGN.sub(_KEPT_SIGN, t))) for t in (output, expected))
    return float(one == other if one and other else output.strip() == expected.strip())


def announced_match(output: str, reference: str) -> float:
    """`exact_match`; a text that announces its answer, as a rationale does, counts as its `final_answer`.

    So a completion with its reasoning is graded by what it comes to. A text that announces none counts whole.
    """
    return exact_match(*(final_answer(t) if _ANNOUNCED.search(t) else t for t in (output, reference)))


def squad_em(output: str, reference: str) -> float:
    """1.0 where the words are equal after SQuAD's normalisation, articles removed (Rajpurkar et al. 2016)."""
    return float(_squad_words(output) == _squad_words(reference))


def token_f1(output: str, reference: str) -> float:
    """F1 of the words after SQuAD's normalisation, articles removed (Rajpurkar et al. 2016, arXiv 1606.05250).

    As in SQuAD 2.0 (Rajpurkar et al. 2018, arXiv 1806.03822), no words match no words and nothing else.
    """
    return _f1(Counter(_squad_words(output)), Counter(_squad_words(reference)))


def _squad_words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _f1(one: Counter[Any], other: Counter[Any]) -> float:
    """F1 of two multisets: 2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


def rouge_1(output: str, reference: str) -> float:
    """ROUGE-1: F1 of stemmed words; see `rouge_l`."""
    return _rouge("rouge1", output, reference)


def rouge_2(output: str, reference: str) -> float:
    """ROUGE-2: F1 of pairs of neighbouring stemmed words; see `rouge_l`. A text of one word has no pair."""
    return _rouge("rouge2", output, reference)


def rouge_l(output: str, reference: str) -> float:
    """ROUGE-L (Lin 2004, ROUGE: a package for automatic evaluation of summaries): F1 of the longest common
    subsequence of stemmed words, by the library rouge-score.

    The library drops all letters but a to z; here words of every script count. On text of a to z the two are equal.
    """
    return _rouge("rougeL", output, reference)


def rouge_lsum(output: str, reference: str) -> float:
    """ROUGE-L of summaries whose sentences stand on lines of their own: for each line of the reference, the words
    that its longest common subsequences with all lines of the output cover together; see `rouge_l`.
    """
    return _rouge("rougeLsum", output, reference)


def _rouge(kind: str, output: str, reference: str) -> float:
    return float(_rouge_scorer(kind).score(reference, output)[kind].fmeasure)


class _Words:
    """rouge-score's tokenizer with its stemmer, over the letters of every script."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        return [self._stem(word) if len(word) > 3 else word for word in _WORDS.findall(text.lower())]


@lru_cache(maxsize=4)
def _rouge_scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=_Words())


def bleu(output: str, reference: str) -> float:
    """Sentence BLEU (Papineni et al. 2002) by sacrebleu (Post 2018, arXiv 1804.08771), tokenized as it does ("13a").

    A text of fewer than four words is compared by the n-grams that it has ("effective order"); an order without a
    match is smoothed exponentially.
    """
    from sacrebleu import sentence_bleu

    return sentence_bleu(output, [reference], use_effective_order=True).score / 100


def chrf(output: str, reference: str) -> float:
    """chrF2 (Popović 2015) by sacrebleu: F of character n-grams up to 6, recall counting twice as much."""
    from sacrebleu import sentence_chrf

    return sentence_chrf(output, [reference]).score / 100


def number(output: str, reference: str) -> float:
    """1.0 where the two answers come to the same number (`final_number`).

    The final number alone counts in GSM8K too (Cobbe et al. 2021, arXiv 2110.14168), there behind a mark of its own.
    A reference without a number is compared by `announced_match`.
    """
    wanted = final_number(reference)
    if wanted is None:
        return announced_match(output, reference)
    return float(final_number(output) == wanted)


def final_number(text: str) -> Fraction | None:
    """The number that an answer comes to: 1,234.5, -3, $5, 50%, 3/4, 1 1/2, 2e-3. None where there is none.

    It is the first behind the last "answer is", "answer:" or "####" whose line has one, and of a sum there
    ("3 + 4 = 7") what it comes to; else the last of the whole text. A percentage is the number before its sign: 50% is
    50, not 0.5. Digits behind a letter, as in H2O, are no number.
    """
    for match in reversed(list(_ANNOUNCED_NUMBER.finditer(text))):
        for line in _lines(text[match.end() :])[:1]:
            behind = _SUM.match(line)
            if found := (behind and _NUMBER.search(line, behind.end())) or _NUMBER.search(line):
                return _value(found)
    every = list(_NUMBER.finditer(text))
    return _value(every[-1]) if every else None


def _value(match: re.Match[str]) -> Fraction:
    sign = -1 if match["minus"] or match["minus_behind"] else 1
    if match["under"]:
        return sign * (int(match["whole"] or 0) + Fraction(int(match["over"]), int(match["under"])))
    return sign * Fraction(match["decimal"].replace(",", "") + (match["power"] or ""))


def span_f1(output: str, reference: str) -> float:
    """F1 of the items of two lists, repeats counting (the measure of CoNLL-2003, Tjong Kim Sang and De Meulder 2003,
    over what is written instead of positions).
    """
    return _f1(items(output), items(reference))


def items(text: str) -> Counter[str]:
    """The items of a list, case, bullets, quotation marks and a last full stop aside; "none" is the empty list.

        - Oslo (place); Ana (person)     oslo (place), ana (person)
        place: Oslo; Lima                place: oslo, place: lima
        {"place": ["Oslo", "Lima"]}      place: oslo, place: lima

    Items stand between semicolons, commas or line ends, and may share a label in front. JSON counts by its values.
    """
    values = _json_items(text)
    found = Counter(filter(None, map(_plain, _split_items(text) if values is None else values)))
    return Counter() if set(found) == {"none"} else found


def _split_items(text: str) -> Iterator[str]:
    for line in text.splitlines():
        first, *others = _SEPARATORS.split(_BULLET.sub("", line.strip()))
        label = _LABEL.match(first)
        yield first
        yield from (f"{label[0] if label and other.strip() else ''}{other}" for other in others)


def _json_items(text: str) -> list[str] | None:
    """The values of JSON, each with its key; those of an object in a list make one item. None where it is no JSON."""
    if not text.strip().startswith(("[", "{")):
        return None
    try:
        return list(_leaves(json.loads(text)))
    except (ValueError, RecursionError):
        return None


def _leaves(value: Any, label: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{label}{key}: ")
    elif isinstance(value, list):
        for child in value:
            if isinstance(child, dict) and not any(isinstance(v, dict | list) for v in child.values()):
                yield label + ", ".join(f"{key}: {child[key]}" for key in sorted(child))
            else:
                yield from _leaves(child, label)
    elif value is not None:
        yield f"{label}{value}"


def _plain(item: str) -> str:
    item = _BULLET.sub("", " ".join(item.casefold().split()))
    return item.rstrip(".").strip(_QUOTES + " ")


_GRADERS: dict[str, Callable[[str, str], float]] = {
    "accuracy": announced_match,
    "exact_match": announced_match,
    "squad_em": squad_em,
    "token_f1": token_f1,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
    "rouge_lsum": rouge_lsum,
    "bleu": bleu,
    "chrf": chrf,
    "number": number,
    "span_f1": span_f1,
}
METRICS = (*_GRADERS, "code")
