"""What a whole task scores: numbers that no single item has, and where guessing stands.

In:  a task's outputs and references, in the same order; its kind and its metric.
Out: scores from 0 to 1 by name, beside the mean of what metrics.py gives each item.

    over_items("classification", "accuracy", ["yes", "yes", "yes"], ["yes", "no", "yes"])
                                                         # {"balanced_accuracy": 0.5, "macro_f1": 0.4}
    over_items("generation", "rouge_l", outputs, references)
                                                         # {"rouge_1": …, "rouge_2": …, "rouge_l": …, "rouge_lsum": …}
    normalised(0.55, chance("multiple_choice", [4, 4, 2]))     # 0.325: a third of the way from guessing to perfect

Pure functions of lists: for an interval, hand in the items of a resample.
"""

from collections.abc import Sequence
from statistics import fmean

from ift.tasks.metrics import grade, items

# A metric of single items, and those of its family that papers report together.
_MEANS = {
    **dict.fromkeys(
        ("rouge_1", "rouge_2", "rouge_l", "rouge_lsum"), ("rouge_1", "rouge_2", "rouge_l", "rouge_lsum")
    ),
    **dict.fromkeys(("squad_em", "token_f1"), ("squad_em", "token_f1")),
}


def over_items(kind: str, metric: str, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The scores over all items that suit a task of this kind with this metric; none where nothing is to be added.

        classification               balanced_accuracy, macro_f1
        labelling                    span_precision_micro, span_recall_micro, span_f1_micro
        generation by bleu, chrf     bleu_corpus, chrf_corpus
        generation by rouge_*        rouge_1, rouge_2, rouge_l, rouge_lsum    means over the items
        generation by squad_em,
                      token_f1       squad_em, token_f1                       means over the items

    Of a classification, outputs and references are names of one closed set: not letters that stand for them, nor
    the words that some template has for them. Choices that each item brings along (multiple_choice) are no classes.
    """
    if not outputs or len(outputs) != len(references):
        raise ValueError(
            f"{len(outputs)} outputs, {len(references)} references: wanted as many, and at least one"
        )
    if kind == "classification":
        return {
            "balanced_accuracy": balanced_accuracy(outputs, references),
            "macro_f1": macro_f1(outputs, references),
        }
    if kind == "labelling":
        names = ("span_precision_micro", "span_recall_micro", "span_f1_micro")
        return dict(zip(names, spans_micro(outputs, references), strict=True))
    if kind == "generation" and metric in ("bleu", "chrf"):
        return {
            "bleu_corpus": bleu_corpus(outputs, references),
            "chrf_corpus": chrf_corpus(outputs, references),
        }
    if kind == "generation":
        pairs = list(zip(outputs, references, strict=True))
        return {name: fmean(grade(name, *pair) for pair in pairs) for name in _MEANS.get(metric, ())}
    return {}


def balanced_accuracy(outputs: Sequence[str], references: Sequence[str]) -> float:
    """The mean over the classes of the references of the share that is found (scikit-learn's balanced_accuracy_score).

    Each class weighs the same: answering the most frequent one always scores 1 / number of classes.
    """
    from sklearn.metrics import recall_score

    # The same number; the function of that name warns of every output that no reference has.
    classes = sorted(set(references))
    return float(recall_score(references, outputs, labels=classes, average="macro", zero_division=0))


def macro_f1(outputs: Sequence[str], references: Sequence[str]) -> float:
    """The mean over classes of their F1 (scikit-learn's f1_score, macro): the classes of references and of outputs."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, outputs, average="macro", zero_division=0))


def spans_micro(outputs: Sequence[str], references: Sequence[str]) -> tuple[float, float, float]:
    """Precision, recall and F1 over the spans of all items together (CoNLL-2003, Tjong Kim Sang and De Meulder 2003).

    A span is what `metrics.items` reads: the text and the type as written, not a position, and right once for each
    time that it occurs in its own item. A share of nothing is 1 where nothing was to be found, else 0.
    """
    got, wanted, right = 0, 0, 0
    for output, reference in zip(outputs, references, strict=True):
        one, other = items(output), items(reference)
        got, wanted, right = got + one.total(), wanted + other.total(), right + (one & other).total()
    nothing = float(got == wanted == 0)
    return (
        right / got if got else nothing,
        right / wanted if wanted else nothing,
        2 * right / (got + wanted) if got + wanted else nothing,
    )


def bleu_corpus(outputs: Sequence[str], references: Sequence[str]) -> float:
    """BLEU over the n-grams of all items together (Papineni et al. 2002) by sacrebleu, tokenized as it does ("13a").

    Unlike the mean of sentence scores, this is what papers on translation report. Where no output has four words, the
    n-grams that there are count ("effective order").
    """
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(outputs, [references], use_effective_order=True).score) / 100


def chrf_corpus(outputs: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 over the character n-grams of all items together (Popović 2015) by sacrebleu."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(outputs, [references]).score) / 100


def chance(kind: str, choices: Sequence[int] = ()) -> float | None:
    """The expected accuracy of a uniform guess; None for kinds that have no score (chat, text).

    `choices` are the numbers of choices, one an item, or a single one for all; an open answer is never guessed: 0.

        chance("multiple_choice", [4, 2])  ->  0.375        chance("classification", [3])  ->  0.333
    """
    if kind in ("classification", "multiple_choice"):
        if not choices or min(choices) < 1:
            raise ValueError(f"choices are {list(choices)[:5]}: wanted at least one for each item")
        return fmean(1 / n for n in choices)
    return 0.0 if kind in ("generation", "labelling") else None


def normalised(raw: float, chance: float) -> float:
    """Where a score stands between guessing (0) and perfection (1); below 0 where it is worse than a guess.

    `(raw - chance) / (1 - chance)`, BIG-bench's normalised score with 1 as the high score (Srivastava et al. 2022,
    arXiv 2206.04615); Flan's averages over benchmarks are of this kind (Chung et al. 2022, arXiv 2210.11416).
    """
    if not 0 <= chance < 1:
        raise ValueError(f"chance is {chance}: wanted at least 0 and below 1; where a guess is always right, no "
                         "score says anything")  # fmt: skip
    return (raw - chance) / (1 - chance)
