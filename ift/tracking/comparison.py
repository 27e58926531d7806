"""One page about several runs: what each gained and forgot, side by side, and in what they differ.

In:  two `Record`s or more, each under a name of its own.
Out: an HTML file that opens without a network, as report.py makes one of a single run.

    write_comparison(Path("comparison.html"), {"full": record, "LoRA": other})

Runs go by letters, in the order given. A gain or a drop compares a run with its own base model; where two runs were not
asked the same items, a note says so.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ift.evaluate import forgetting
from ift.redaction import without_secrets
from ift.tracking import plots
from ift.tracking.drawing import RUNS
from ift.tracking.html import write_page
from ift.tracking.record import Record, standing
from ift.tracking.report import headline, meaning, method, verdict
from ift.tracking.words import (
    Row,
    as_float,
    as_text,
    clip,
    duration,
    fact,
    label,
    lower_is_better,
    mapping,
    number,
    percent,
    rows_of,
    score_of,
    shorten,
)

_LONGEST = 300  # characters of a setting
_OF_THE_RUN = ("name", "tracking.", "cluster.address")  # keys that say where a run goes, not what it is

# Rows of the last table: a label, and how the value is read from a summary.
_COSTS = (
    *(
        ("train", key)
        for key in ("method", "zero_stage", "offload", "activation_checkpointing", "micro_batch")
    ),
    *(("train", key) for key in ("workers", "precision", "attention", "parameters", "steps", "best_step")),
    *(("stream", key) for key in ("packs", "fill", "tokens", "supervised_tokens", "documents")),
    *(("train", key) for key in ("final_loss", "validation_loss", "tokens_per_second", "restarts")),
    *(("train", key) for key in ("planned_memory_gib", "worker_peak_memory_gib", "gpu_peak_memory_gib")),
)


def write_comparison(path: Path, runs: Mapping[str, Record]) -> None:
    """Write the page of several runs to `path`, in one move. The same runs give the same bytes."""
    records = list(runs.values())
    summaries = [without_secrets(record.summary) for record in records]
    letters = [letter(i) for i in range(len(runs))]
    stands = [standing(record) for record in records]
    curves = [
        plots.curve_of(of, record.metrics, record.validation)
        for of, record in zip(letters, records, strict=True)
    ]
    points = [
        plots.Point(of, where["gain"], where["drop"], i)
        for i, (of, where) in enumerate(zip(letters, stands, strict=True))
    ]
    limits = {limit for summary in summaries if math.isfinite(limit := plots.tolerated(summary))}
    limit = limits.pop() if len(limits) == 1 else math.nan  # of runs with different limits none is drawn
    write_page(
        path,
        "comparison.html.j2",
        runs=[
            {
                "letter": of,
                "name": name,
                "colour": i % len(RUNS),
                "headline": headline(summary),
                "gate": verdict(mapping(summary.get("gate")).get("verdict")),
                "method": method(mapping(summary.get("train")).get("method")),
                "standing": where,
                "known": point.known,
                "worst": _worst(mapping(summary.get("gate"))),
            }
            for i, (of, name, summary, where, point) in enumerate(
                zip(letters, runs, summaries, stands, points, strict=True)
            )
        ],
        notes=_notes(letters, records),
        plots=plots.of_runs(curves, points, limit),
        tolerated=number(limit, 2) if math.isfinite(limit) else "",
        groups=[_group(summaries, key) for key in ("task", "probes")],
        tables=[
            {
                "id": "differences",
                "title": "What differs",
                "rows": _differences(records, summaries),
                "note": "Keys of the specs, then versions of packages. What is not listed is the same in all.",
                "none": "Nothing: their specs and their packages are the same.",
            },
            {
                "id": "costs",
                "title": "Plan, speed, memory, time",
                "rows": _costs(records, summaries),
                "note": "",
                "none": "Nothing was recorded.",
            },
        ],
        places=[
            (f"{of} {name}", as_text(summary.get("run_dir")) or "unknown")
            for of, name, summary in zip(letters, runs, summaries, strict=True)
        ],
    )


def letter(place: int) -> str:
    """0 -> "A", 25 -> "Z", 26 -> "A2" """
    turn, place = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[place] + (str(turn + 1) if turn else "")


def _worst(gate: Row) -> str:
    worst = number(gate.get("worst_drop"), 3, sign=True)
    return f"{worst} ({as_text(gate['worst_probe'])})" if gate.get("worst_probe") else worst


def _notes(letters: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Which runs were asked other items than the first."""
    notes = []
    for of, record in zip(letters[1:], records[1:], strict=True):
        by_side: list[dict[str, set[tuple[str, ...]]]] = [{}, {}]
        sides = (records[0].before, record.before)
        for side, predictions, questions in zip(by_side, sides, forgetting.questions(*sides), strict=True):
            for prediction, question in zip(predictions, questions, strict=True):
                side.setdefault(as_text(prediction.get("name")), set()).add(question)
        first, mine = by_side
        differ = sorted(name for name in first.keys() & mine.keys() if first[name] != mine[name])
        if differ:
            notes.append(
                f"{of} was asked other items than {letters[0]} of {', '.join(differ)}: their scores are not compared "
                "item by item."
            )
    return notes


def _group(summaries: Sequence[Row], key: str) -> dict[str, Any]:
    """Tasks or probes, a row each, with a cell a run; None where a run was not asked."""
    change, up, down = ("gain", "pass", "fail") if key == "task" else ("drop", "fail", "pass")
    by_run = [{as_text(row.get("name")): row for row in rows_of(summary, key)} for summary in summaries]
    rows = []
    for name in dict.fromkeys(name for of_run in by_run for name in of_run):
        first = next(of_run[name] for of_run in by_run if name in of_run)
        rows.append(
            {
                "name": name,
                "metric": as_text(first.get("metric")),
                "note": "lower is better" if lower_is_better(first) else "",
                "cells": [
                    {
                        "base": score_of(of_run[name], "base")["value"],
                        "tuned": score_of(of_run[name], "tuned")["value"],
                        "change": (delta := score_of(of_run[name], change)),
                        "tone": tone if (tone := meaning(delta, up, down)) in (up, down) else "none",
                    }
                    if name in of_run
                    else None
                    for of_run in by_run
                ],
            }
        )
    titles = {
        "task": "Tasks: what the models were tuned for",
        "probes": "Probes: what they were not tuned for",
    }
    return {"title": titles[key], "change": change, "rows": rows}


def _differences(records: Sequence[Record], summaries: Sequence[Row]) -> list[tuple[str, list[str]]]:
    settings = [without_secrets(record.settings) for record in records]
    versions = [
        {f"version of {key}": value for key, value in mapping(summary.get("versions")).items()}
        for summary in summaries
    ]
    found = []
    for several in (settings, versions):
        for key in dict.fromkeys(key for values in several for key in values):
            if str(key).startswith(_OF_THE_RUN):
                continue
            shown = [_setting(values, key) for values in several]
            if len(set(shown)) > 1:
                found.append((str(key), shown))
    return found


def _setting(values: Row, key: str) -> str:
    if key not in values:
        return "–"
    value = values[key]
    if isinstance(value, list):  # of tasks: what they do not say is left out
        said = [
            {name: inner for name, inner in one.items() if inner not in (None, [], {})}
            if isinstance(one, dict)
            else one
            for one in value
        ]
        return shorten("; ".join(map(fact, said)) or "none", _LONGEST)
    return shorten("none" if value is None else as_text(value), _LONGEST)


def _costs(records: Sequence[Record], summaries: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """How each run went: what was planned, how fast, in how much memory, how long. What no run has is left out."""
    rows: list[tuple[str, list[Any]]] = []
    for section, key in _COSTS:
        values = [mapping(summary.get(section)).get(key) for summary in summaries]
        shown = {"method": method, "fill": percent}.get(key, fact)
        rows.append((label(key), [None if value is None else shown(value) for value in values]))
    rows.append(("Supervised tokens a second", [_supervised_rate(record.metrics) for record in records]))
    peaks = [summary.get("peak_memory_gib") for summary in summaries]
    rows.append(
        ("Peak memory of all processes, GiB", [None if peak is None else fact(peak) for peak in peaks])
    )
    timings = [mapping(summary.get("timings")) for summary in summaries]
    for stage in dict.fromkeys(stage for times in timings for stage in times):
        took = [
            duration(times[stage]) if math.isfinite(as_float(times.get(stage))) else None for times in timings
        ]
        rows.append((f"Time: {clip(stage, 60)}", took))
    return [(name, [value or "–" for value in values]) for name, values in rows if any(values)]


def _supervised_rate(metrics: Sequence[Row]) -> str | None:
    """Supervised tokens a second of stepping, over all steps that were timed."""
    timed = [
        (tokens, seconds)
        for row in metrics
        if math.isfinite(tokens := as_float(row.get("supervised_tokens")))
        and (seconds := as_float(row.get("seconds"))) > 0
    ]
    return fact(sum(tokens for tokens, _ in timed) / sum(seconds for _, seconds in timed)) if timed else None
