"""What the pages need to know of a run.

In:  its summary, what was measured step by step, what it answered before and after.
Out: the same, item beside item; and where the run stands between gain and forgetting.

    standing(Record(summary, before=base, after=tuned))["drop"]    # {"value": 0.04, "low": 0.01, "high": 0.07}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ift.evaluate import forgetting
from ift.tracking.words import Row, as_float, rows_of, score_of

Score = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A run. Anything but the summary may be empty; the pages then say so."""

    summary: Row
    metrics: Sequence[Row] = ()  # of metrics.jsonl, a row a step
    validation: Sequence[Row] = ()
    before: Sequence[Row] = ()  # predictions of the base model
    after: Sequence[Row] = ()  # and of the tuned one
    lengths: Mapping[str, Mapping[int, int]] = field(
        default_factory=dict
    )  # of each task: tokens of an instruction in the stream, and how many have so many
    settings: Row = field(default_factory=dict)  # the spec by dotted key
    spec: str = ""  # the spec as YAML

    @property
    def pairs(self) -> list[tuple[Row, Row]]:
        """Each item as the base model answered it, and as the tuned one did; those that both were asked."""
        tuned = {_identity(row): row for row in self.after}
        return [(row, tuned[key]) for row in self.before if (key := _identity(row)) in tuned]


def _identity(prediction: Row) -> tuple[Any, ...]:
    return tuple(prediction.get(key) for key in ("suite", "name", "id", "shots", "draw"))


def standing(record: Record) -> dict[str, Score]:
    """The mean gain over the tasks that were trained on, and the mean drop over the probes, each with its interval.

    Each task and each probe counts once; the intervals are percentile bootstraps over items. Without predictions the
    values are the summary's and have no interval. `value` is None where nothing was measured.
    """
    pairs = record.pairs
    tasks = [pair for pair in pairs if pair[0]["suite"] == "task"]
    probes = [pair for pair in pairs if pair[0]["suite"] == "probe"]
    found = {"gain": _of_summary(record.summary, "task"), "drop": _of_summary(record.summary, "probes")}
    if tasks:
        # a gain is the drop that going back would be
        before, after = ([{**row, "suite": "probe"} for row in side] for side in zip(*tasks, strict=True))
        found["gain"] = dict(forgetting.mean_drop(after, before))
    if probes:
        found["drop"] = dict(forgetting.mean_drop(*zip(*probes, strict=True)))
    return found


def _of_summary(summary: Row, key: str) -> Score:
    change = "gain" if key == "task" else "drop"
    scores = [score_of(row, change) for row in rows_of(summary, key) if not row.get("held_out")]
    values = [as_float(score["value"]) for score in scores if score["value"] is not None]
    mean = sum(values) / len(values) if values else None
    alone = scores[0] if len(scores) == 1 else {}
    return {"value": mean, "low": alone.get("low"), "high": alone.get("high")}
