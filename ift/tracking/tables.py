"""What the pages show as a table with bars: confusion matrices, lengths, the mixture.

In:  pairs of predictions; the lengths of a stream's instructions; the rows of the manifest's mixture.
Out: plain values with shares from 0 to 1, which the templates draw as bars.

    confusions(pairs)[0]["sides"][1]["rows"][0]["cells"][0]    # {"count": 41, "share": 0.82}
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ift.tracking.words import Row, as_float, as_text, clip, rows_of

CLASSES = 12  # of a matrix; what is rarer goes into one row and column
TASKS = 40  # of a mixture
BARS = 12
_OTHERS = "others"

Pairs = Sequence[tuple[Row, Row]]


def confusions(pairs: Pairs) -> list[dict[str, Any]]:
    """Of each classification, what was answered for each class: `{"name", "items", "columns", "sides", "others"}`.

    `sides` are the base and the tuned model, each with a row a class and a cell an answer; a cell's share is that of
    its row. Past `CLASSES` the most frequent stand alone, and `others` says how many classes do not.
    """
    found: dict[str, list[tuple[Row, Row]]] = {}
    for base, tuned in pairs:
        if base.get("task_kind") == "classification":
            found.setdefault(as_text(base.get("name")), []).append((base, tuned))
    return [_confusion(name, of_task) for name, of_task in found.items()]


def _confusion(name: str, pairs: Pairs) -> dict[str, Any]:
    classes = Counter(as_text(base.get("label")) for base, _ in pairs)
    most = CLASSES if len(classes) <= CLASSES else CLASSES - 1
    shown = sorted(label for label, _ in classes.most_common(most))

    def of(row: Row, key: str) -> str | None:
        return label if (label := as_text(row.get(key))) in shown else None

    others = any(of(row, "predicted") is None for pair in pairs for row in pair)
    columns: list[str | None] = [*shown, *([None] if others else [])]
    rows: list[str | None] = [*shown, *([None] if len(shown) < len(classes) else [])]
    sides = []
    for who, side in (("Base", 0), ("Tuned", 1)):
        counts = Counter((of(pair[0], "label"), of(pair[side], "predicted")) for pair in pairs)
        table = []
        for row in rows:
            total = sum(counts[row, column] for column in columns)
            cells = [
                {
                    "count": counts[row, column],
                    "share": counts[row, column] / total if total else 0.0,
                    "right": row is not None and row == column,
                }
                for column in columns
            ]
            table.append({"label": _class(row), "cells": cells, "total": total})
        right = sum(as_text(pair[side].get("predicted")) == as_text(pair[0].get("label")) for pair in pairs)
        sides.append({"who": who, "rows": table, "right": right})
    return {
        "name": name,
        "items": len(pairs),
        "columns": [_class(column) for column in columns],
        "sides": sides,
        "others": len(classes) - len(shown),
    }


def _class(name: str | None) -> str:
    return _OTHERS if name is None else clip(name, 30) or "(nothing)"


def answer_lengths(pairs: Pairs) -> list[dict[str, Any]]:
    """How many words the written answers have, of the base and of the tuned model; tasks and probes apart.

    `{"title", "items", "medians": (base, tuned), "bars": [{"label", "counts", "shares"}]}`; bars get twice as wide.
    """
    groups: dict[str, list[tuple[int, int]]] = {}
    for base, tuned in pairs:
        if base.get("kind") == "generation":
            title = "Probes" if base.get("suite") == "probe" else "Tasks"
            words = tuple(len(as_text(row.get("output")).split()) for row in (base, tuned))
            groups.setdefault(title, []).append((words[0], words[1]))
    found = []
    for title in sorted(groups, reverse=True):
        lengths = groups[title]
        sides = [[pair[side] for pair in lengths] for side in (0, 1)]
        most = max(max(side) for side in sides)
        edges = [
            (0, 0),
            (1, 1),
            *((2**k + 1, 2 ** (k + 1)) for k in range(max(1, math.ceil(math.log2(most or 1))))),
        ]
        counts = [[sum(low <= n <= high for n in side) for side in sides] for low, high in edges]
        while len(counts) > 1 and not any(counts[-1]):
            counts.pop()
        largest = max(max(pair) for pair in counts)
        bars = [
            {
                "label": _span(low, high) if high else "no word",
                "counts": pair,
                "shares": [count / largest for count in pair],
            }
            for (low, high), pair in zip(edges, counts, strict=False)
        ]
        medians = tuple(_quantile(Counter(side), 0.5) for side in sides)
        found.append({"title": title, "items": len(lengths), "medians": medians, "bars": bars})
    return found


def stream_lengths(lengths: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
    """How many tokens the instructions of a stream have: `{"bars": [{"label", "count", "share", "bar"}], "total"}`.

    With it `tasks`, of each the median, the 95th percentile and the longest.
    """
    everything: Counter[int] = Counter()
    for of_task in lengths.values():
        everything.update(of_task)
    total = everything.total()
    if not total:
        return {"bars": [], "tasks": [], "total": 0}
    step = _nice(max(everything) / BARS)
    bins: Counter[int] = Counter()
    for length, count in everything.items():
        bins[(length - 1) // step] += count
    largest = max(bins.values())
    bars = [
        {
            "label": _span(i * step + 1, (i + 1) * step),
            "count": bins[i],
            "share": bins[i] / total,
            "bar": bins[i] / largest,
        }
        for i in range(min(bins), max(bins) + 1)
    ]
    return {
        "bars": bars,
        "total": total,
        "tasks": {name: _summed(of_task) for name, of_task in lengths.items()},
    }


def _summed(lengths: Mapping[int, int]) -> dict[str, int]:
    return {
        "median": _quantile(lengths, 0.5),
        "high": _quantile(lengths, 0.95),
        "longest": max(lengths, default=0),
    }


def mixture(stream: Row, lengths: Mapping[str, Row]) -> dict[str, Any]:
    """The mixture asked for beside what came out: `{"rows": [...], "left_out"}`, the most asked for first.

    Shares are of all tasks: of what was asked, of the instructions, the tokens and the supervised tokens that came out.
    """
    rows = sorted(rows_of(stream, "mixture"), key=lambda row: -_amount(row, "asked"))
    keys = ("asked", "instructions", "tokens", "supervised_tokens")
    totals = {key: sum(_amount(row, key) for row in rows) for key in keys}
    shown = [
        {
            "task": as_text(row.get("task")),
            "role": as_text(row.get("role")) if row.get("role") != "train" else "",
            "seen_each": row.get("seen_each"),
            "lengths": lengths.get(as_text(row.get("task")), {}),
            **{
                key: {
                    "count": _amount(row, key),
                    "share": _amount(row, key) / totals[key] if totals[key] else 0.0,
                }
                for key in keys
            },
        }
        for row in rows[:TASKS]
    ]
    return {"rows": shown, "left_out": max(0, len(rows) - TASKS)}


def _amount(row: Row, key: str) -> float:
    amount = as_float(row.get(key))
    return amount if math.isfinite(amount) and amount > 0 else 0.0


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value that has `share` of all at or below it."""
    left = share * sum(counts.values())
    for value in sorted(counts):
        left -= counts[value]
        if left <= 1e-9:
            return value
    return 0


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _nice(step: float) -> int:
    """The next of 1, 2, 5, 10, 20, … that is no smaller."""
    size = 10 ** math.floor(math.log10(max(step, 1)))
    return next(int(size * digit) for digit in (1, 2, 5, 10) if size * digit >= step)
