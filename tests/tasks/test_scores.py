"""Scores over all items are those of the libraries of the field, and do not depend on the order of the items."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.tasks.metrics import grade
from ift.tasks.scores import chance, normalised, over_items

NAME = st.sampled_from(["yes", "no", "maybe"])
SENTENCE = st.lists(
    st.sampled_from(["red", "green", "blue", "the", "walks", "12"]), min_size=1, max_size=9
).map(" ".join)
SPANS = st.lists(st.sampled_from(["Oslo", "Lima", "Rome"]), max_size=3).map("; ".join)


def pairs(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.tuples(text, text), min_size=1, max_size=8)


# kind, metric and the items of every family of scores
TASK = st.one_of(
    st.tuples(st.just("classification"), st.just("accuracy"), pairs(NAME)),
    st.tuples(st.just("labelling"), st.just("span_f1"), pairs(SPANS)),
    st.tuples(st.just("generation"), st.sampled_from(["bleu", "chrf"]), pairs(SENTENCE)),
    st.tuples(st.just("generation"), st.sampled_from(["rouge_1", "rouge_l", "rouge_lsum"]), pairs(SENTENCE)),
    st.tuples(st.just("generation"), st.sampled_from(["squad_em", "token_f1"]), pairs(SENTENCE)),
)


def scores(kind: str, metric: str, items: list[tuple[str, str]]) -> dict[str, float]:
    return over_items(kind, metric, [output for output, _ in items], [reference for _, reference in items])


@given(TASK)
def test_scores_lie_between_0_and_1(task: Any) -> None:
    found = scores(*task)
    assert found
    assert all(0 <= score <= 1 + 1e-12 for score in found.values())


@given(TASK)
def test_the_references_score_1(task: Any) -> None:
    kind, metric, items = task
    found = scores(kind, metric, [(reference, reference) for _, reference in items])
    assert found == pytest.approx(dict.fromkeys(found, 1.0))


@given(TASK, st.randoms())
def test_the_order_of_the_items_does_not_count(task: Any, chooser: random.Random) -> None:
    kind, metric, items = task
    shuffled = list(items)
    chooser.shuffle(shuffled)
    assert scores(kind, metric, shuffled) == pytest.approx(scores(kind, metric, items))


# classes


@given(pairs(NAME))
@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label")
def test_classification_is_scikit_learns(items: list[tuple[str, str]]) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    outputs, references = [output for output, _ in items], [reference for _, reference in items]
    assert over_items("classification", "accuracy", outputs, references) == pytest.approx(
        {
            "balanced_accuracy": balanced_accuracy_score(references, outputs),
            "macro_f1": f1_score(references, outputs, average="macro"),
        }
    )


@pytest.mark.filterwarnings("error")
def test_the_frequent_answer_alone_is_not_worth_much() -> None:
    references = ["yes"] * 8 + ["no"] * 2
    found = over_items("classification", "accuracy", ["yes"] * 10, references)
    assert found == pytest.approx({"balanced_accuracy": 1 / 2, "macro_f1": (16 / 18 + 0) / 2})


@pytest.mark.filterwarnings("error")
def test_an_output_of_no_class_costs_its_item_and_counts_as_a_class_of_its_own() -> None:
    found = over_items("classification", "accuracy", ["yes", "hm"], ["yes", "no"])
    assert found == pytest.approx({"balanced_accuracy": 1 / 2, "macro_f1": 1 / 3})


# spans


def test_spans_are_counted_over_all_items_together() -> None:
    outputs = ["Oslo; Lima", "Rome", "none", "Oslo"]
    references = ["Oslo", "Rome; Lima; Bonn", "none", "none"]
    # 2 right of 4 found and 4 wanted; Lima is right nowhere, as it stands in other items
    assert scores("labelling", "span_f1", list(zip(outputs, references, strict=True))) == pytest.approx(
        {"span_precision_micro": 2 / 4, "span_recall_micro": 2 / 4, "span_f1_micro": 2 / 4}
    )


def test_long_lists_weigh_more_than_in_the_mean_of_the_items() -> None:
    items = [("a", "a"), ("none", "b; c; d; e")]
    assert scores("labelling", "span_f1", items) == pytest.approx(
        {"span_precision_micro": 1, "span_recall_micro": 1 / 5, "span_f1_micro": 1 / 3}
    )


@pytest.mark.parametrize(
    ("output", "reference", "wanted"),
    [("none", "none", (1, 1, 1)), ("none", "Oslo", (0, 0, 0)), ("Oslo", "none", (0, 0, 0))],
)
def test_no_spans(output: str, reference: str, wanted: tuple[float, ...]) -> None:
    assert tuple(scores("labelling", "span_f1", [(output, reference)]).values()) == wanted


# generations


@given(pairs(SENTENCE))
def test_corpus_scores_are_sacrebleus(items: list[tuple[str, str]]) -> None:
    import sacrebleu

    items = [*items, ("the red sun walks", "the red sun walks")]  # some n-gram of every order
    outputs, references = [output for output, _ in items], [reference for _, reference in items]
    assert over_items("generation", "chrf", outputs, references) == pytest.approx(
        {
            "bleu_corpus": sacrebleu.corpus_bleu(outputs, [references]).score / 100,
            "chrf_corpus": sacrebleu.corpus_chrf(outputs, [references]).score / 100,
        }
    )


def test_the_bleu_of_a_corpus_is_not_the_mean_of_its_sentences() -> None:
    items = [("the cat sat on the mat", "the cat sat on the mat"), ("a dog", "the dog barked at me")]
    corpus = scores("generation", "bleu", items)["bleu_corpus"]
    # 7 of 8 words, 5 of 6 pairs, 4 of 4, 3 of 3; 8 words instead of 11
    assert corpus == pytest.approx((7 / 8 * 5 / 6) ** 0.25 * 2.718281828 ** (1 - 11 / 8))
    assert corpus != pytest.approx(sum(grade("bleu", *item) for item in items) / 2)


def test_short_answers_have_a_corpus_bleu_too() -> None:
    assert scores("generation", "bleu", [("yes", "yes"), ("no", "no")])["bleu_corpus"] == pytest.approx(1)


@given(pairs(SENTENCE))
def test_rouges_are_means_of_the_librarys(items: list[tuple[str, str]]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
    library = RougeScorer(list(kinds.values()), use_stemmer=True)
    # the library gives a single word no ROUGE-2 at all, even against itself
    items = [(f"big {output}", f"a big {reference}") for output, reference in items]
    each = [library.score(reference, output) for output, reference in items]
    assert scores("generation", "rouge_l", items) == pytest.approx(
        {name: sum(one[kind].fmeasure for one in each) / len(each) for name, kind in kinds.items()}
    )


def test_answers_to_questions_have_exact_matches_and_f1() -> None:
    items = [("the Eiffel Tower", "Eiffel tower"), ("tall tower", "tower")]
    assert scores("generation", "token_f1", items) == pytest.approx(
        {"squad_em": 1 / 2, "token_f1": (1 + 2 / 3) / 2}
    )


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("multiple_choice", "accuracy"), ("generation", "number"), ("generation", "code"), ("chat", "")],
)
def test_some_tasks_have_nothing_to_add(kind: str, metric: str) -> None:
    assert over_items(kind, metric, ["1"], ["1"]) == {}


def test_outputs_and_references_go_together() -> None:
    with pytest.raises(ValueError, match=r"^1 outputs, 2 references: wanted as many, and at least one$"):
        over_items("generation", "bleu", ["a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"^0 outputs, 0 references"):
        over_items("generation", "bleu", [], [])


# guessing


@pytest.mark.parametrize(
    ("kind", "choices", "wanted"),
    [
        ("classification", [3], 1 / 3),
        ("classification", [2, 2, 2], 1 / 2),
        ("multiple_choice", [4, 2], 3 / 8),
        ("generation", [], 0),
        ("labelling", [], 0),
        ("chat", [], None),
        ("text", [], None),
    ],
)
def test_chance(kind: str, choices: list[int], wanted: float | None) -> None:
    assert chance(kind, choices) == (None if wanted is None else pytest.approx(wanted))


@given(st.lists(st.integers(2, 6), min_size=1, max_size=5))
def test_chance_is_what_guessing_comes_to(choices: list[int]) -> None:
    chooser = random.Random(0)
    rounds = 4000
    right = sum(chooser.randrange(n) == 0 for _ in range(rounds) for n in choices)
    assert chance("multiple_choice", choices) == pytest.approx(right / rounds / len(choices), abs=0.05)


@pytest.mark.parametrize("choices", [[], [3, 0]])
def test_a_choice_of_nothing_is_no_choice(choices: list[int]) -> None:
    with pytest.raises(ValueError, match="wanted at least one for each item"):
        chance("multiple_choice", choices)


@given(st.floats(0, 0.99), st.floats(0, 1))
def test_normalised_puts_guessing_at_0_and_perfection_at_1(guess: float, raw: float) -> None:
    assert normalised(guess, guess) == 0
    assert normalised(1, guess) == pytest.approx(1)
    # FLAN's way of writing it, in points of a hundred
    assert 100 * normalised(raw, guess) == pytest.approx(
        100 * (100 * raw - 100 * guess) / (100 - 100 * guess)
    )
    assert (normalised(raw, guess) < 0) == (raw < guess)


@pytest.mark.parametrize("guess", [1, 1.2, -0.1])
def test_a_guess_that_is_always_right_leaves_nothing_to_measure(guess: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        normalised(0.5, guess)
