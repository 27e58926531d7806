"""A metric sees what an answer says, not how it is set; it agrees with the library or the paper it comes from."""

import re
import string
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ift.errors import IftError
from ift.tasks import metrics
from ift.tasks.metrics import (
    METRICS,
    exact_match,
    final_answer,
    final_number,
    grade,
    items,
    normalise,
    squad_em,
    token_f1,
)

TEXT = st.text(max_size=40)
WORD = st.sampled_from(["red", "green", "blues", "the", "walked", "walking", "12", "a"])
WORDS = st.lists(WORD, max_size=8).map(" ".join)
# what answers are made of, so that the parsers of numbers and lists have something to trip over
ANSWER = st.lists(
    st.sampled_from(
        [
            "The answer is",
            "answer:",
            "none",
            "-",
            "1.",
            "3/4",
            ",",
            ";",
            "\n",
            "[",
            "]",
            '{"a": [',
            "red: ",
            "%",
        ]
    )
    | WORD
    | TEXT,
    max_size=10,
).map(" ".join)
# `code` compares nothing: it runs the output against the reference (test_code.py)
COMPARING = [metric for metric in METRICS if metric != "code"]
METRIC = st.sampled_from(COMPARING)


@given(METRIC, TEXT | ANSWER, TEXT | ANSWER)
def test_a_score_lies_between_0_and_1(metric: str, output: str, reference: str) -> None:
    assert 0 <= grade(metric, output, reference) <= 1


@given(METRIC, TEXT | ANSWER)
@example("bleu", "yes")
@example("rouge_l", "...")
@example("token_f1", "the")
@example("number", "no number")
@example("chrf", "")
def test_the_reference_itself_scores_1(metric: str, text: str) -> None:
    assert grade(metric, text, text) == 1
    assert grade(metric, f" {text}\n", text) == 1


@given(METRIC, WORDS.filter(bool))
def test_without_the_short_cut_the_reference_scores_1_too(metric: str, text: str) -> None:
    assume(metric != "rouge_2" or len(text.split()) > 1)  # a single word makes no pair
    grader = {**vars(metrics), "accuracy": exact_match}[metric]
    assert grader(text, text) == pytest.approx(1)


@given(
    st.sampled_from(["exact_match", "squad_em", "token_f1", "rouge_1", "rouge_2", "rouge_l", "span_f1"]),
    TEXT | ANSWER | WORDS,
    TEXT | ANSWER | WORDS,
)
def test_order_does_not_count_where_precision_and_recall_weigh_the_same(metric: str, a: str, b: str) -> None:
    assert grade(metric, a, b) == pytest.approx(grade(metric, b, a))


@pytest.mark.parametrize("metric", COMPARING)
def test_silence_scores_0_against_words(metric: str) -> None:
    assert grade(metric, "", "green walls") == 0
    assert grade(metric, "...", "green walls") == 0
    assert grade(metric, "green walls", "...") == 0


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no metric `meteor`; there are accuracy, exact_match, "):
        grade("meteor", "a", "a")


def test_code_is_run_only_with_consent() -> None:
    with pytest.raises(
        IftError, match=r"runs programs that the model wrote[^$]*`evaluate\.allow_code: true`"
    ):
        grade("code", "x = 1", "assert x == 1")
    with pytest.raises(IftError, match="runs programs"):  # the short cut for equal texts is none for programs
        grade("code", "x = 1", "x = 1")


# exact match


@given(TEXT)
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(TEXT)
def test_what_is_left_is_plain(text: str) -> None:
    left = normalise(text)
    assert left == left.lower()
    assert not set(left) & set(string.punctuation)
    assert left == " ".join(left.split())


@given(TEXT)
def test_setting_does_not_count(text: str) -> None:
    assume(normalise(text))
    assert exact_match(text, text) == 1
    assert exact_match(f"  {text}.\n", text) == 1
    assert exact_match(text.lower(), text) == 1


@given(TEXT, TEXT)
def test_order_does_not_count_and_the_score_is_zero_or_one(one: str, other: str) -> None:
    assert exact_match(one, other) == exact_match(other, one)
    assert exact_match(one, other) in (0, 1)


@given(
    st.lists(st.sampled_from(["red", "green", "blue"]), min_size=1, max_size=4), st.sampled_from(["not", "a"])
)
def test_one_word_more_is_another_answer(words: list[str], more: str) -> None:
    assert exact_match(" ".join([*words, more]), " ".join(words)) == 0


@given(TEXT)
def test_silence_matches_only_silence(text: str) -> None:
    assume(normalise(text))
    assert exact_match("", text) == 0
    assert exact_match("...", "") == 0


@pytest.mark.parametrize(
    ("output", "expected", "score"),
    [
        ("Paris.", "paris", 1),
        ("New  York\n", "New York", 1),
        ("rock'n'roll", "rocknroll", 1),
        ("the cat", "cat", 0),  # articles count
        ("It is Paris.", "Paris", 0),
        ("3.5", "35", 0),
        ("3.5.", "3.5", 1),
        (".5", "5", 0),
        ("-5", "5", 0),
        ("\u22125", "-5", 1),
        ("3-4", "34", 1),  # no sign: the price of ignoring punctuation
        ("1,000", "1000", 1),
        ("+", "-", 0),
        ("+\n", "+", 1),
        ("", "!", 0),
    ],
)
def test_examples(output: str, expected: str, score: float) -> None:
    assert exact_match(output, expected) == score


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It rains.\nThe answer is Paris.", "Paris."),
        ("So the answer is: Paris", "Paris"),
        ("Facts: it rains.\nAnswer: yes\nGood luck!", "yes"),
        ("**Final Answer:** yes", "yes"),
        ("ANSWER:\n\n  yes \n", "yes"),
        ("The answer is no. Wait: the answer is yes", "yes"),
        ("The answer is yes. The answer is", "yes. The answer is"),  # the last with something behind it
        ("It rains.\nTherefore: yes\n \n", "Therefore: yes"),
        ("yes", "yes"),
        ("What is the answer? No idea", "What is the answer? No idea"),
        ("My answers: yes", "My answers: yes"),
        (" \n", ""),
        ("", ""),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@given(TEXT | ANSWER)
def test_a_final_answer_is_one_line_of_the_text(text: str) -> None:
    answer = final_answer(text)
    assert answer in text
    assert len(answer.splitlines()) <= 1
    assert bool(answer) or not text.strip(string.whitespace + "*_`\x1c\x1d\x1e\x85\u2028\u2029")


@pytest.mark.parametrize("metric", ["exact_match", "accuracy"])
@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("Rain is water.\nThe answer is wet.", "Rain falls. So the answer is wet.", 1),
        ("The answer is wet.", "wet", 1),
        ("wet", "Rain falls.\nAnswer: wet", 1),
        ("Rain falls.\nThe answer is dry.", "Rain falls.\nThe answer is wet.", 0),
        ("one\nwet", "two\nwet", 0),  # without an announcement the whole text counts
    ],
)
def test_of_a_rationale_the_announced_answer_counts(
    metric: str, output: str, reference: str, score: float
) -> None:
    assert grade(metric, output, reference) == score


# SQuAD


def squad_normalised(text: str) -> str:
    """The four steps of SQuAD's evaluation, one after the other."""
    text = text.lower()
    text = "".join(c for c in text if c not in string.punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


@given(WORDS | TEXT, WORDS | TEXT)
@example("The cat.", "a CAT")
def test_squad_em_is_equality_after_squads_normalisation(output: str, reference: str) -> None:
    assert squad_em(output, reference) == float(squad_normalised(output) == squad_normalised(reference))


@given(WORDS, WORDS)
def test_squads_exact_matches_have_full_f1(output: str, reference: str) -> None:
    assert token_f1(output, reference) >= squad_em(output, reference)


def squad_f1(output: str, reference: str) -> float:
    """Precision and recall over word counts, as SQuAD's paper describes them."""
    got, wanted = metrics._squad_words(output), metrics._squad_words(reference)
    if not got or not wanted:
        return float(got == wanted)
    same = sum(min(got.count(word), wanted.count(word)) for word in set(got))
    if not same:
        return 0.0
    precision, recall = same / len(got), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


@given(WORDS, WORDS)
def test_token_f1_is_the_mean_of_precision_and_recall(output: str, reference: str) -> None:
    assert token_f1(output, reference) == pytest.approx(squad_f1(output, reference))


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1),  # articles, case and punctuation aside
        ("tall Eiffel Tower", "Eiffel Tower", 4 / 5),
        ("one one two", "one two two", 2 / 3),  # counted once for each time that it occurs in both
        ("An apple a day", "apples", 0),
        ("theatre", "atre", 0),
        ("the", "a", 1),  # nothing against nothing
        ("the", "cat", 0),
    ],
)
def test_token_f1(output: str, reference: str, score: float) -> None:
    assert token_f1(output, reference) == pytest.approx(score)


# ROUGE, BLEU, chrF


ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
LINES = st.lists(WORDS, max_size=3).map("\n".join)


@given(
    st.sampled_from(sorted(ROUGE)), st.text(st.characters(codec="ascii"), max_size=60) | WORDS | LINES, LINES
)
@example("rouge_l", "The U.S. economy's 3.5% growth", "the us economys 3 5 growth")
@example("rouge_lsum", "red green\nblue", "blue\nred green")
def test_rouge_is_the_librarys(metric: str, output: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    library = RougeScorer([ROUGE[metric]], use_stemmer=True).score(reference, output)[ROUGE[metric]].fmeasure
    assert getattr(metrics, metric)(output, reference) == pytest.approx(library)


@pytest.mark.parametrize(
    ("metric", "output", "reference", "score"),
    [
        ("rouge_l", "police kill the gunman", "police killed the gunman", 1),  # stems
        (
            "rouge_l",
            "police kill the gunman",
            "the gunman police killed",
            1 / 2,
        ),  # the order counts: two of four
        ("rouge_1", "police kill the gunman", "the gunman police killed", 1),
        ("rouge_2", "police kill the gunman", "the gunman police killed", 2 / 3),  # two of three pairs
        ("rouge_2", "Police.", "police", 0),  # no pair
        ("rouge_l", "police ran\nthe gunman hid", "the gunman hid\npolice ran", 3 / 5),
        ("rouge_lsum", "police ran\nthe gunman hid", "the gunman hid\npolice ran", 1),  # line by line
        ("rouge_l", "кошка спит", "кошка ест", 1 / 2),
        ("rouge_1", "猫が", "猫は", 1 / 2),
        ("rouge_lsum", "猫が", "猫は", 1 / 2),
        ("rouge_l", "größer als", "größer als", 1),
    ],
)
def test_rouge(metric: str, output: str, reference: str, score: float) -> None:
    assert grade(metric, output, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("yes", "yes", 1),
        ("two words", "two words", 1),
        ("no", "yes", 0),
        ("the cat", "the cat sat", 2.718281828 ** (1 - 3 / 2)),  # all n-grams right, but too short
        # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples
        ("the cat sat down here", "the cat sat down there", (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        # no triple in common: 3 of 4 words, 1 of 3 pairs, then 1/2 of 1 of 2 triples and 1/4 of 1 quadruple
        ("a b c d", "a b d e", (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25),
        ("(yes)", "( yes )", 1),  # its tokenizer parts punctuation from words
    ],
)
def test_bleu(output: str, reference: str, score: float) -> None:
    assert grade("bleu", output, reference) == pytest.approx(score)


def chrf_by_hand(output: str, reference: str) -> float:
    """F2 of mean precision and mean recall over the orders that both texts have (Popović 2015)."""
    one, other = "".join(output.split()), "".join(reference.split())
    precisions, recalls = [], []
    for n in range(1, 7):
        got = Counter(one[i : i + n] for i in range(len(one) - n + 1))
        wanted = Counter(other[i : i + n] for i in range(len(other) - n + 1))
        if got and wanted:
            same = (got & wanted).total()
            precisions.append(same / got.total())
            recalls.append(same / wanted.total())
    if not sum(precisions):
        return 0.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * p * r / (4 * p + r)


@given(WORDS, WORDS)
def test_chrf_is_the_papers(output: str, reference: str) -> None:
    assert metrics.chrf(output, reference) == pytest.approx(chrf_by_hand(output, reference))


# numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The total is 1,234.5 kg", "1234.5"),
        ("12,345,678", "12345678"),
        ("1,2,3", "3"),
        ("72.", "72"),
        ("is...5", "5"),
        (".5", "1/2"),
        ("1.2.3", "1.2"),
        ("-3", "-3"),
        ("x = \u22123", "-3"),
        ("(-3)", "-3"),
        ("5-3", "3"),  # a hyphen
        ("7 - 3", "3"),
        ("- 3 apples", "3"),  # a bullet
        ("$5", "5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("US$5m", "5"),
        ("50%", "50"),
        ("3/4", "3/4"),
        ("It is 3/4.", "3/4"),
        ("1 1/2 cups", "3/2"),
        ("-1 1/2", "-3/2"),
        ("1/0", "0"),
        ("24/12/2026", "2026"),
        ("2e-3", "2/1000"),
        ("6E2", "600"),
        ("5eggs", "5"),
        ("72km", "72"),
        ("the 3rd", "3"),
        ("H2O", None),
        ("v2.0", None),
        ("none", None),
        ("", None),
        ("<<6/2=3>>3 left", "3"),
        ("The answer is 72.\n\nAsk me 2 more.", "72"),
        ("The answer is 72. Wait, 5 more.\nAnswer: 77", "77"),
        ("The answer is 18 dollars per day for 7 days.", "18"),
        ("7 times 18.\n#### 18\nIn 7 days.", "18"),
        ("6/2=<<6/2=3>>3 a day\n####3 of 7", "3"),
        ("The answer is: **$1,200** for 3 nights", "1200"),
        ("The answer is 3 + 4 = 7 apples for 2", "7"),
        ("The answer is 7 (= 3 + 4)", "7"),
        ("The answer is 2 x 3 = 6 = 6.0, not 5", "6"),
        ("The answer is 18, as 3 x 6 = 18 and 20 - 2 = 18.", "18"),
        ("The answer is 5. Is the answer clear? The answer is: yes", "5"),
        ("9 of 10, so the answer is none", "10"),
        ("8 apples\nThat is all.", "8"),  # the last line has none
        ("\u0663", None),  # digits of other scripts are left alone
    ],
)
def test_the_last_number_counts(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Fraction(number))


@given(
    st.decimals(-(10**9), 10**9, places=3), st.sampled_from(["{}", "${}", "{}%", "about {} in all", "= {}."])
)
def test_a_number_is_read_however_it_is_written(value: object, words: str) -> None:
    for style in ("{:.3f}", "{:,.3f}"):
        assert final_number(words.format(style.format(value))) == Fraction(str(value))


@given(st.integers(-50, 50), st.integers(1, 50))
def test_a_fraction_equals_its_decimal(numerator: int, denominator: int) -> None:
    assert final_number(f"so {numerator}/{denominator}") == Fraction(numerator, denominator)


def test_thousands_of_digits_are_no_trouble() -> None:
    assert grade("number", "9" * 10_000, "72") == 0
    assert grade("number", "1/" + "9" * 10_000, "72") == 0
    assert grade("number", "." + "9" * 10_000 + "e999", "72") == 0


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("6 * 12 = 72 apples", "Six times twelve.\nThe answer is 72.", 1),
        ("72.00", "72", 1),
        ("0.75", "3/4", 1),
        ("1,000", "1000", 1),
        ("73", "72", 0),
        ("-72", "72", 0),
        ("seventy-two", "72", 0),
        ("None.", "none", 1),  # no number is expected: the words are compared
        ("5", "none", 0),
    ],
)
def test_number(output: str, reference: str, score: float) -> None:
    assert grade("number", output, reference) == score


# lists


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Oslo; Lima", ["oslo", "lima"]),
        ("Oslo, Lima,Rome", ["oslo", "lima", "rome"]),
        ("Oslo\n\nLima\n", ["oslo", "lima"]),
        ("Oslo; Oslo", ["oslo", "oslo"]),
        ("- Oslo\n* New   York\n• Lima", ["oslo", "new york", "lima"]),
        ("3. Rome\n4) Bonn\n(5) Kyiv", ["rome", "bonn", "kyiv"]),
        ("1. Oslo; 2. Lima", ["oslo", "lima"]),
        ('"Oslo"; \u201cLima\u201d.', ["oslo", "lima"]),
        ("1,000 men; 2,5", ["1,000 men", "2,5"]),
        ("Oslo (place); Ana (person)", ["oslo (place)", "ana (person)"]),
        ("place: Oslo; Lima\nperson: Ana", ["place: oslo", "place: lima", "person: ana"]),
        ("Oslo | place\nAna | person", ["oslo | place", "ana | person"]),
        ("3:15; 4:20", ["3:15", "4:20"]),
        ("None.", []),
        ("- none", []),
        ("none; Oslo", ["none", "oslo"]),
        ("", []),
        (" ; ,\n", []),
        ("[]", []),
        ('{"place": [], "person": []}', []),
        ('{"place": ["Oslo", "Lima, Peru"], "person": []}', ["place: oslo", "place: lima, peru"]),
        ('["Oslo", 3, null]', ["oslo", "3"]),
        ('[{"text": "Oslo", "type": "place"}, {"type": "person", "text": "Ana"}]',
         ["text: oslo, type: place", "text: ana, type: person"]),
        ('{"a": {"b": "c"}}', ["a: b: c"]),
        ("[Oslo, Lima", ["[oslo", "lima"]),  # broken JSON is text
    ],
)  # fmt: skip
def test_items(text: str, wanted: list[str]) -> None:
    assert items(text) == Counter(wanted)


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("lima; OSLO", "Oslo; Lima", 1),
        ("- Oslo\n- Lima", "Lima, Oslo", 1),
        ("Oslo", "Oslo; Lima", 2 / 3),
        ("Oslo; Oslo", "Oslo; Lima", 1 / 2),  # a repeat is right once
        ("place: Lima; Oslo", "place: Oslo; Lima", 1),
        ("none", "None.", 1),
        ("[]", "none", 1),
        ("none", "Oslo", 0),
        ("Oslo", "none", 0),
        ("Oslo (person)", "Oslo (place)", 0),
    ],
)
def test_span_f1(output: str, reference: str, score: float) -> None:
    assert grade("span_f1", output, reference) == pytest.approx(score)


@given(st.lists(st.text("abc xyz", min_size=1).filter(str.strip), max_size=6), st.randoms(), st.randoms())
def test_the_order_and_the_setting_of_a_list_do_not_count(
    words: list[str], one: object, other: object
) -> None:
    shuffled = sorted(words)
    one.shuffle(shuffled)  # type: ignore[attr-defined]
    assert grade("span_f1", "\n".join(f"- {w.upper()}" for w in shuffled), "; ".join(words)) == 1


def test_deep_json_is_text() -> None:
    assert grade("span_f1", "[" * 100_000, "Oslo") == 0
