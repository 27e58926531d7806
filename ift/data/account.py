"""What the prepare stage tells of its work: the mixture as it came out, what was left out and why.

In:  the documents of a run, the examples they were drawn from.
Out: plain values for the manifest and the reports.

    by_task(documents)                # {"trec": 4906}
    dropped_counts(gathered)          # {"trec": {"exact duplicate": 3, "contaminated": 12}}
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift.data.draws import Requests
from ift.data.gather import Gathered
from ift.data.layout import Documents
from ift.data.selection import REPLAY

EXACT = "exact duplicate"
_NAMES_SHOWN = 10
_MANY_TOO_LONG = 0.1  # of a task's instructions: so many deserve a word


def asked(requests: Sequence[Requests]) -> Counter[str]:
    """How many instructions each task was asked for."""
    counts: Counter[str] = Counter()
    for some in requests:
        counts[some.task] += len(some)
    return counts


def dropped(gathered: Gathered) -> Iterator[dict[str, Any]]:
    """Every good row that is not trained on, and why."""
    for examples in gathered.examples.values():
        yield from ({**twin, "kind": EXACT, "reason": EXACT} for twin in examples.twins)
    yield from gathered.dropped


def dropped_counts(gathered: Gathered) -> dict[str, dict[str, int]]:
    """How many rows each task lost, by kind."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in gathered.tasks}
    for name, examples in gathered.examples.items():
        counts[name][EXACT] += len(examples.twins)
    for row in gathered.dropped:
        counts[row["task"]][row["kind"]] += 1
    return {name: dict(+of_task) for name, of_task in counts.items() if +of_task}


def too_long(documents: Sequence[Documents]) -> Counter[str]:
    """How many instructions each task lost to `max_length`."""
    counts: Counter[str] = Counter()
    for d in documents:
        counts[d.task] += int(d.tokens.too_long[d.rows].sum())
    return +counts


def notes_on_length(too_long: Mapping[str, int], asked: Mapping[str, int], max_length: int) -> list[str]:
    """A word on the tasks that lose many of their instructions to `max_length`, the worst first."""
    many = [name for name, count in too_long.items() if count > _MANY_TOO_LONG * asked[name]]
    many.sort(key=lambda name: -too_long[name] / asked[name])
    shown = ", ".join(f"`{name}` {too_long[name] / asked[name]:.0%}" for name in many[:_NAMES_SHOWN])
    more = f" and {len(many) - _NAMES_SHOWN} more tasks" if len(many) > _NAMES_SHOWN else ""
    return [f"over data.max_length {max_length:,} and set aside: {shown}{more}"] if many else []


def examples(trained: Sequence[Documents]) -> int:
    """How many different examples are trained on."""
    ids: dict[str, list[NDArray[np.uint64]]] = {}
    for d in trained:
        ids.setdefault(d.task, []).append(d.ids[d.good])
    return sum(len(np.unique(np.concatenate(of_task))) for of_task in ids.values())


def by_task(trained: Sequence[Documents]) -> dict[str, int]:
    """The instructions of each task."""
    counts: Counter[str] = Counter()
    for d in trained:
        counts[d.task] += len(d.used)
    return dict(+counts)


def by_template(trained: Sequence[Documents]) -> dict[str, int]:
    """The instructions that each template worded: {"trec/ask": 120}."""
    counts: Counter[str] = Counter()
    for d in trained:
        used = np.bincount(d.tokens.template[d.used], minlength=len(d.tokens.templates))
        for name, count in zip(d.tokens.templates, used.tolist(), strict=True):
            if name:
                counts[f"{d.task}/{name}"] += count
    return dict(+counts)


def realised(
    gathered: Gathered,
    counts: Mapping[str, int],
    trained: Sequence[Documents],
    epochs: int,
) -> list[dict[str, Any]]:
    """The mixture as it came out: a row a task, over all epochs."""
    total = sum(counts.values())
    replayed = gathered.selection.replayed
    rows: dict[str, dict[str, Any]] = {
        name: {
            "task": name,
            "cluster": gathered.tasks[name].cluster,
            "role": REPLAY if name in replayed else "train",
            "available": gathered.sizes[name],
            "asked": count * epochs,
            "share": count / total,
            "seen_each": count * epochs / max(1, gathered.sizes[name]),
            "instructions": 0,
            "tokens": 0,
            "supervised_tokens": 0,
            "few_shot": 0,
            "options": 0,
        }
        for name, count in counts.items()
    }
    for d in trained:
        row, tokens, of = rows[d.task], d.tokens, d.used
        row["instructions"] += len(of)
        row["tokens"] += int(tokens.length[of].sum())
        row["supervised_tokens"] += int(tokens.supervised[of].sum())
        row["few_shot"] += int((tokens.shots[of] > 0).sum())
        row["options"] += int(tokens.options[of].sum())
    return list(rows.values())
