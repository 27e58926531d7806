"""One page about one run: what it gained, what it forgot, and how the training went.

In:  a `Record`: the run's summary (what `summary.json` holds), a record a training step, the validation losses, what
     both models answered, the lengths of its instructions, the resolved spec as text.
Out: `report.html`: one file that opens without a network, in light and dark, on a phone and on paper.

    write_report(run / "report.html", Record(summary, metrics, validation, before, after, spec="name: trec"))

Anything may be missing (probes, training steps, MLflow): the page then says so. The same input gives the same bytes.
html.py says what keeps the page safe; plots.py draws; tables.py and predictions.py count and compare.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ift.redaction import without_secrets
from ift.tracking import plots, predictions, tables
from ift.tracking.html import write_page
from ift.tracking.record import Record, standing
from ift.tracking.words import (
    Row,
    as_float,
    as_text,
    clip,
    counted,
    fact,
    facts,
    interval,
    label,
    lower_is_better,
    mapping,
    number,
    rows_of,
    score_of,
    shorten,
)

LONGEST_SPEC = 60_000

VERDICTS = {"pass": ("✓", "pass"), "fail": ("✗", "fail"), "unclear": ("?", "unclear")}
STAGES = ("prepare", "baseline", "train", "evaluate", "register")
_SHOWN_ELSEWHERE = ("mixture", "tasks", "notes")


def write_report(path: Path, record: Record) -> None:
    """Write the page of a run to `path`, in one move: a reader never sees half of it."""
    summary = without_secrets(record.summary)
    metrics, pairs = record.metrics, record.pairs
    lengths = tables.stream_lengths(record.lengths)
    of_tasks = plots.losses_of_tasks(metrics)
    stream = mapping(summary.get("stream"))
    write_page(
        path,
        "report.html.j2",
        name=as_text(summary.get("name")) or "unnamed run",
        status=as_text(summary.get("status")) or "unknown",
        headline=headline(summary),
        gate=_gate(summary),
        plots=plots.of_run(summary, metrics, record.validation, standing(record)),
        tolerated=number(tolerated, 2) if math.isfinite(tolerated := plots.tolerated(summary)) else "",
        tried=any(not row.get("chosen") for row in rows_of(summary, "attempts")),
        looked=bool(rows_of(summary, "looks")),
        groups=_score_tables(summary),
        prompting=[_prompting(row) for row in rows_of(summary, "prompting")],
        attempts=[_attempt(row) for row in rows_of(summary, "attempts")],
        training=_training_facts(summary),
        notes=_step_notes(metrics),
        smoothed=bool(plots.smoothed(metrics)),
        validated=bool(record.validation),
        tasks_left_out=max(0, len(of_tasks) - plots.TASKS_DRAWN),
        confusions=_confusions(summary, pairs),
        answer_lengths=tables.answer_lengths(pairs),
        predictions=predictions.table(pairs),
        stream=facts({key: value for key, value in stream.items() if key not in _SHOWN_ELSEWHERE}),
        stream_notes=[as_text(note) for note in stream.get("notes") or ()],
        mixture=tables.mixture(stream, lengths["tasks"]),
        lengths=lengths,
        spec=shorten(without_secrets(record.spec), LONGEST_SPEC),
        timings=_timings(summary.get("timings")),
        versions=facts(summary.get("versions"), translate=False),
        places=_places(summary),
    )


def headline(summary: Row) -> str:
    """The run in two or three short sentences of plain text.

    "trec: accuracy 0.51 → 0.82 (+0.31, 95 % interval 0.25 to 0.37). Worst drop: 0.20 (copying). Gate: fail."
    """
    sentences = []
    tasks = rows_of(summary, "task")
    for row in tasks[:3]:
        base, tuned, gain = score_of(row, "base"), score_of(row, "tuned"), score_of(row, "gain")
        span = interval(gain, 2)
        change = number(gain["value"], 2, sign=True) + (f", 95 % interval {span}" if span else "")
        values = f"{number(base['value'], 2)} → {number(tuned['value'], 2)}"
        sentences.append(
            f"{as_text(row.get('name'))}: {as_text(row.get('metric')) or 'score'} {values} ({change})."
        )
    if len(tasks) > 3:
        sentences.append(f"{len(tasks) - 3} more tasks below.")
    if not tasks:
        sentences.append("No task was scored.")
    gate = mapping(summary.get("gate"))
    if not rows_of(summary, "probes"):
        sentences.append("No probe was scored, so nothing is known of what was forgotten.")
    elif gate.get("worst_probe") and not math.isfinite(as_float(gate.get("worst_drop"))):
        sentences.append(f"Worst drop: not a number ({as_text(gate['worst_probe'])}).")
    elif math.isfinite(as_float(gate.get("worst_drop"))):
        probe = f" ({as_text(gate['worst_probe'])})" if gate.get("worst_probe") else ""
        sentences.append(f"Worst drop: {number(gate['worst_drop'], 2)}{probe}.")
    sentences.append(f"Gate: {as_text(gate.get('verdict')) or 'not decided'}.")
    return " ".join(sentences)


# ── what the template shows ──


def _prompting(row: Row) -> dict[str, Any]:
    """One task's ways, prompted and trained, in words."""
    ways = []
    for way in rows_of(row, "ways"):
        draws, left, seconds = mapping(way.get("draws")), way.get("context_left"), way.get("seconds")
        several = as_float(draws.get("count")) > 1
        ways.append(
            {
                "way": as_text(way.get("way")),
                "score": score_of(way, "score"),
                "draws": f"{number(draws['lowest'], 2)} to {number(draws['highest'], 2)}" if several else "",
                "prompt_tokens": f"{as_float(way.get('prompt_tokens')):,.0f}",
                "context_left": "–" if left is None else f"{as_float(left):,.0f}",
                "seconds": number(seconds, 2),
            }
        )
    verdict = mapping(row.get("verdict"))
    return {
        "name": as_text(row.get("name")),
        "metric": as_text(row.get("metric")),
        "items": as_text(row.get("items")),
        "words": as_text(verdict.get("words")),
        "tone": {"tuning": "pass", "prompting": "pass", "neither": "fail"}.get(
            as_text(verdict.get("kind")), "unclear"
        ),
        "ways": ways,
    }


def _attempt(row: Row) -> dict[str, Any]:
    """One of several runs, in words."""
    gains = [
        f"{as_text(name)} {number(gain, 2, sign=True)}" for name, gain in mapping(row.get("gains")).items()
    ]
    return {
        "name": as_text(row.get("name")),
        "method": method(row.get("method")),
        "verdict": as_text(row.get("verdict")),
        "mean_drop": number(row.get("mean_drop"), 2, sign=True),
        "worst": f"{number(row.get('worst_drop'), 2, sign=True)} ({as_text(row.get('worst_probe')) or 'no probe'})"
        + (f"; too much on {', '.join(map(as_text, found[:4]))}" if (found := row.get("breaches")) else ""),
        "gains": ", ".join(gains[:6]) + (", …" if len(gains) > 6 else ""),
        "chosen": bool(row.get("chosen")),
    }


def method(value: Any) -> str:
    """ "full" -> "all weights" """
    return {"full": "all weights", "lora": "LoRA"}.get(as_text(value), as_text(value))


def verdict(value: Any) -> dict[str, str]:
    """A verdict as a sign, a word and a tone: a colour alone would not do."""
    sign, word = VERDICTS.get(as_text(value), ("·", as_text(value) or "not decided"))
    return {"sign": sign, "word": word, "tone": word if word in VERDICTS else "none"}


def _gate(summary: Row) -> dict[str, Any]:
    gate = mapping(summary.get("gate"))
    lines = [
        {
            "check": as_text(row.get("check")),
            "detail": as_text(row.get("detail")),
            **verdict(row.get("verdict")),
        }
        for row in rows_of(gate, "lines")
    ]
    worst = number(gate.get("worst_drop"))
    if gate.get("worst_probe"):
        worst += f" ({as_text(gate['worst_probe'])})"
    drops = [("Mean drop over the probes", number(gate.get("mean_drop"))), ("Worst drop", worst)]
    return {**verdict(gate.get("verdict")), "lines": lines, "drops": drops if gate else []}


def meaning(change: Row, up: str, down: str) -> str:
    """What the interval of a change allows to be said, in words."""
    low, high = as_float(change["low"]), as_float(change["high"])
    if low > 0:
        return up
    if high < 0:
        return down
    return "could be chance" if low <= 0 <= high else ""


def _score_tables(summary: Row) -> list[dict[str, Any]]:
    found = []
    for key, title, change, up, down in (
        ("task", "Tasks: what the model was tuned for", "gain", "better", "worse"),
        ("probes", "Probes: what it was not tuned for", "drop", "worse", "better"),
    ):
        rows = []
        for row in rows_of(summary, key):
            delta = score_of(row, change)
            rows.append(
                {
                    "name": as_text(row.get("name")),
                    "metric": as_text(row.get("metric")),
                    "note": "lower is better" if lower_is_better(row) else "",
                    "items": fact(row.get("items")),
                    "scores": [score_of(row, "base"), score_of(row, "tuned")],
                    "change": delta,
                    "meaning": meaning(delta, up, down),
                }
            )
        found.append({"key": key, "title": title, "change": change.capitalize(), "rows": rows})
    return found


def _confusions(summary: Row, pairs: tables.Pairs) -> list[dict[str, Any]]:
    """The matrices, each with what else is told of such a task: (label, "base → tuned")."""
    also = {row.get("name"): mapping(row.get("also")) for row in rows_of(summary, "task")}
    return [
        {
            **matrix,
            "also": [
                (label(key), f"{number(values.get('base'), 2)} → {number(values.get('tuned'), 2)}")
                for key, values in also.get(matrix["name"], {}).items()
            ],
        }
        for matrix in tables.confusions(pairs)
    ]


def _training_facts(summary: Row) -> list[tuple[str, str]]:
    found = facts(summary.get("train"))
    if summary.get("peak_memory_gib") is not None:
        found.append(("Peak memory", f"{fact(summary['peak_memory_gib'])} GiB"))
    return found


def _step_notes(metrics: Sequence[Row]) -> list[str]:
    """What the loss curve cannot draw."""
    bad = [row.get("step") for row in metrics if not math.isfinite(as_float(row.get("loss")))]
    if not bad:
        return []
    have = "has" if len(bad) == 1 else "have"
    return [
        f"{counted(len(bad), 'step')} {have} a loss that is no finite number; the first is step {fact(bad[0])}. "
        "Crosses mark them."
    ]


def _timings(value: Any) -> list[dict[str, Any]]:
    timings = mapping(value)
    known = [stage for stage in STAGES if stage in timings]
    others = [stage for stage in timings if stage not in STAGES and stage != "total"]
    total = as_float(timings.get("total"))
    if not (math.isfinite(total) and total > 0):
        total = sum(seconds for stage in known + others if math.isfinite(seconds := as_float(timings[stage])))
    rows = []
    for stage in [*known, *others, *(["total"] if "total" in timings else [])]:
        share = as_float(timings[stage]) / total if total > 0 else 0.0
        share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
        rows.append(
            {
                "stage": clip(stage, 60),
                "seconds": timings[stage],
                "long": as_float(timings[stage]) >= 60,
                "share": "" if stage == "total" else f"{share:.1%}",
            }
        )
    return rows


def _places(summary: Row) -> list[dict[str, Any]]:
    files = [
        (label, fact(summary[key]))
        for key, label in (("model_dir", "Tuned model"), ("run_dir", "Run folder"))
        if summary.get(key)
    ]
    mlflow = mapping(summary.get("mlflow"))
    if not mlflow:
        note = "This run was not recorded in MLflow."
    elif "error" in mlflow:
        note = f"This run could not be recorded in MLflow: {as_text(mlflow['error'])}"
    else:
        note = ""
    return [
        {"title": "Files", "facts": files, "note": "" if files else "No model was written."},
        {"title": "Base model", "facts": facts(summary.get("model")), "note": ""},
        {"title": "MLflow", "facts": [] if note else facts(mlflow), "note": note},
    ]
