"""What tuning gained and what it made the model forget.

In:  the predictions of the base and of the tuned model on the same items.
Out: per task the gain, per probe the drop, each with a 95 % interval; and whether a drop can be chance.

    compare(before, after)    # [{"name": "arithmetic", "base": {...}, "tuned": {...}, "drop": {"value": 0.02, ...}}]

A drop is the share of ability lost, on one scale for all kinds of probes:

    multiple_choice, generation    base - tuned, of scores from 0 to 1
    reference                      1 - exp(base - tuned), of losses in nats: the share lost of the likelihood
                                   that the model gives to each token of a good answer
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ift.evaluate.statistics import EXACT, RESAMPLES, Interval, at_once, holm, interval, p_of_drop
from ift.tasks import scores

# What makes a question, of what a prediction holds of it. `asked` is a digest of the rest: choices, rules, budget.
_QUESTION = (
    *("suite", "name", "id", "kind", "task_kind", "metric", "prompt", "shots", "draw", "cut"),
    *("label", "expected", "chance"),
)
# of a kind of probe that names none
METRICS = {"multiple_choice": "accuracy", "reference": "nats a token", "generation": "rules kept"}


def compare(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], *, may_gain: bool = True
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tasks and probes, each `{name, kind, metric, items, base, tuned, normalised, gain | drop}`, in the items' order.

    What was not trained on (probes, and tasks held out) has `p`, the probability of such a drop by chance, and
    `p_corrected` for how many of them there are. A task of which few items differ has `p_gain`, that of such a gain: a
    bootstrap of these says too much, and of more it says the same. Where a task is not asked to gain (`may_gain` is
    False: the two models are both tuned), it is judged as what was not trained on.
    """
    if [(p["name"], p["id"]) for p in before] != [(p["name"], p["id"]) for p in after]:
        raise ValueError("the two models were not asked the same items")
    groups: dict[tuple[str, str], list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for b, a in zip(before, after, strict=True):
        groups.setdefault((b["suite"], b["name"]), []).append((b, a))
    tasks, probes = [], []
    for (suite, name), pairs in groups.items():
        first = pairs[0][0]
        base = np.array([b["score"] for b, _ in pairs], dtype=float)
        tuned = np.array([a["score"] for _, a in pairs], dtype=float)
        row: dict[str, Any] = {
            "name": name,
            "kind": first["kind"],
            "metric": (first["metric"] or METRICS[first["kind"]]).replace("_", " ")
            + (", held out" if suite == "held_out" else ""),
            "items": len(pairs),
            "base": interval(base),
            "tuned": interval(tuned),
        }
        if first["kind"] == "reference":
            worse = tuned - base
            drop = {key: None if v is None else 1 - math.exp(-v) for key, v in interval(worse).items()}
        else:
            worse = base - tuned
            drop = interval(worse)
            chance = float(np.mean([b.get("chance", 0.0) for b, _ in pairs]))
            row["normalised"] = {
                "chance": chance,
                "base": normalised(base.mean(), chance),
                "tuned": normalised(tuned.mean(), chance),
            }
        if first["kind"] == "generation":
            row["answer_words"] = {"base": _words(b for b, _ in pairs), "tuned": _words(a for _, a in pairs)}
        if suite != "probe":
            row["also"] = _also([b for b, _ in pairs], [a for _, a in pairs])
        if suite != "task" or not may_gain:
            row["p"] = p_of_drop(worse)
        elif np.count_nonzero(worse) <= EXACT:
            row["p_gain"] = p_of_drop(-worse)
        if suite == "probe":
            probes.append({**row, "drop": drop})
        else:
            tasks.append({**row, "held_out": suite == "held_out", "gain": interval(tuned - base)})
    tested = [row for row in [*tasks, *probes] if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = p
    return tasks, probes


def questions(*sides: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, ...]]]:
    """What each side was asked, item by item: equal where the questions are, as far as all sides tell.

    Predictions of an older ift have no digest of what was asked.
    """
    digests = all(any(p.get("asked") for p in side) for side in sides)
    keys = (*_QUESTION, "asked") if digests else _QUESTION
    return [[tuple(repr(p.get(key)) for key in keys) for p in side] for side in sides]


def _also(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """What papers report of such a task beside its metric: `{"macro_f1": {"base": 0.5, "tuned": 0.9}, …}`."""
    found: dict[str, dict[str, float]] = {}
    for side, predictions in (("base", before), ("tuned", after)):
        kind, metric = predictions[0].get("task_kind") or "", predictions[0]["metric"] or ""
        if kind:
            outputs, references = ([p[key] or "" for p in predictions] for key in ("predicted", "label"))
            for name, value in scores.over_items(kind, metric, outputs, references).items():
                found.setdefault(name, {})[side] = value
    return found


def alone(predictions: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tasks and probes of one model, each `{name, kind, metric, items, base, normalised}`: what `compare` has, less
    the other model."""
    gone = ("tuned", "gain", "drop", "p", "p_corrected", "p_gain")
    tasks, probes = compare(predictions, predictions)
    for row in [*tasks, *probes]:
        for key in gone:
            row.pop(key, None)
        for values in row.get("also", {}).values():
            values.pop("tuned")
    return tasks, probes


def mean_drop(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Interval:
    """The mean of the probes' drops, each probe counting once, with its 95 % percentile-bootstrap interval.

    Items are drawn again within their probe, for both models alike. None where there is no probe.
    """
    rng = np.random.default_rng(0)
    worse: dict[str, list[float]] = {}
    nats: set[str] = set()
    for b, a in zip(before, after, strict=True):
        if b["suite"] == "probe":
            reference = b["kind"] == "reference"
            worse.setdefault(b["name"], []).append(
                a["score"] - b["score"] if reference else b["score"] - a["score"]
            )
            nats.update({b["name"]} if reference else ())
    if not worse:
        return {"value": None, "low": None, "high": None}
    drops = []
    for name, values in worse.items():
        each, step = np.array(values), at_once(len(values))
        sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
        drawn = [each[rng.integers(0, len(each), size=(size, len(each)))].mean(axis=1) for size in sizes]
        means = np.concatenate([[each.mean()], *drawn])
        drops.append(1 - np.exp(-means) if name in nats else means)
    means = np.mean(drops, axis=0)
    low, high = np.percentile(means[1:], [2.5, 97.5])
    return {"value": float(means[0]), "low": float(low), "high": float(high)}


def mean_and_worst(
    probes: Sequence[Mapping[str, Any]],
) -> tuple[float | None, float | None, str | None]:
    """The mean drop, the worst one, and the probe that it is of; all None where none was measured.

    A drop that is no number is the worst, and makes the mean one that is none.
    """
    drops = {str(row["name"]): (row.get("drop") or {}).get("value") for row in probes}
    known = {name: float(drop) for name, drop in drops.items() if drop is not None}
    if not known:
        return None, None, None
    worst = max(known, key=lambda name: (math.isnan(known[name]), known[name], name))
    return sum(known.values()) / len(known), known[worst], worst


def summary(probes: Sequence[Mapping[str, Any]], *, breach: bool) -> dict[str, Any]:
    """The probes in short: `{"breach", "mean_drop", "worst", "probes": {name: {base, tuned, drop, low, high, p}}}`.

    The mean and the worst drop are those of `mean_and_worst`.
    """
    mean, _, worst = mean_and_worst(probes)
    return {
        "breach": breach,
        "mean_drop": mean,
        "worst": worst,
        "probes": {
            row["name"]: {
                "base": row["base"]["value"],
                "tuned": row["tuned"]["value"],
                "drop": row["drop"]["value"],
                "low": row["drop"]["low"],
                "high": row["drop"]["high"],
                "p": row["p_corrected"],
            }
            for row in probes
        },
    }


def normalised(score: float, chance: float) -> float:
    """`score` with guessing as 0 and all right as 1 (scores.py). Guessing that is always right leaves nothing to
    measure: 0.
    """
    return float(scores.normalised(score, chance)) if chance < 1 else 0.0


def backward_transfer(scores: Sequence[Sequence[float]]) -> float:
    """What learning later tasks did to earlier ones: the mean over tasks i < T of `scores[T][i] - scores[i][i]`.

    `scores[t][i]` is the score on task i after stage t; below 0 is forgetting (Lopez-Paz and Ranzato 2017, Gradient
    episodic memory for continual learning, arXiv 1706.08840). Raises `ValueError` for fewer than two stages.
    """
    stages = len(scores)
    if stages < 2 or any(len(row) < stages for row in scores):
        raise ValueError(
            f"{stages} stages with {[len(row) for row in scores]} scores; wanted two or more, square"
        )
    return math.fsum(scores[-1][i] - scores[i][i] for i in range(stages - 1)) / (stages - 1)


def _words(predictions: Any) -> float:
    """Median length of the answers, in words."""
    return float(np.median([len(p["output"].split()) for p in predictions]))
