"""The words and numbers of the pages: values of a summary as short texts.

In:  any value, also none, NaN, or something of another kind than it should be.
Out: text that is not escaped yet; the templates do that.

    number(-0.0004)                            # "0.000"
    interval({"low": 0.25, "high": 0.373}, 2)  # "0.25 to 0.37"
    duration(7384)                             # "2 h 3 min"
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

# A NUL or an escape code would end, or garble, a page: each becomes its picture.
CONTROL = {code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)} | {127: 0x2421}

LABELS = {
    "tokens_per_second": "Tokens a second",
    "final_loss": "Final training loss",
    "zero_stage": "ZeRO stage",
    "fill": "Packs filled",
    "fresh": "Tokenized anew",
    "cut": "Instructions shortened",
    "rows": "Rows of the sources",
    "quarantined": "Rows set aside",
    "macro_f1": "Macro-F1",
    "mlflow": "MLflow",
    "tracking_uri": "Tracking address",
    "run_id": "Run id",
    "sha256": "SHA-256",
    "planned_memory_gib": "Planned memory of a worker, GiB",
    "worker_peak_memory_gib": "Peak memory of a worker, GiB",
    "gpu_peak_memory_gib": "Peak memory of a GPU, GiB",
}


def number(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number in the pages' notation: a true minus, never "-0.00", and words for what is no number."""
    if value is None:
        return "–"
    amount = as_float(value)
    if math.isnan(amount):
        return "not a number"
    if math.isinf(amount):
        return "infinite" if amount > 0 else "−infinite"
    shown = f"{amount:.{digits}f}"
    if float(shown) == 0:
        return shown.lstrip("-")
    return shown.replace("-", "−") if amount < 0 else ("+" + shown if sign else shown)


def interval(score: Row, digits: int = 3) -> str:
    """ "0.25 to 0.37", or nothing where the interval is not known."""
    low, high = as_float(score.get("low")), as_float(score.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{number(low, digits)} to {number(high, digits)}"


def duration(seconds: Any) -> str:
    """Seconds as "9.0 s", "7 min 0 s" or "2 h 3 min"."""
    amount = as_float(seconds)
    if not math.isfinite(amount):
        return number(seconds)
    if amount < 60:
        return f"{amount:.1f} s"
    minutes, rest = divmod(round(amount), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(share: Any) -> str:
    """0.996 -> "99.6 %" """
    amount = as_float(share)
    return f"{100 * amount:.1f} %".replace("-", "−") if math.isfinite(amount) else number(share)


def counted(count: int, noun: str) -> str:
    """1, "row" -> "1 row"; 1200, "row" -> "1,200 rows" """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def fact(value: Any) -> str:
    """Any value of the summary as one short text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {fact(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(fact(inner) for inner in value) or "–"
    return str(value)


def facts(values: Any, *, translate: bool = True) -> list[tuple[str, str]]:
    """A mapping's values as (label, text); labels are put into words unless `translate` is off."""
    return [
        (label(key) if translate else str(key), percent(value) if key == "fill" else fact(value))
        for key, value in mapping(values).items()
    ]


def label(key: Any) -> str:
    """ "zero_stage" -> "ZeRO stage", "peak_memory" -> "Peak memory" """
    return LABELS.get(key) or str(key).replace("_", " ").capitalize()


def as_float(value: Any) -> float:
    """The number in `value`, NaN where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def as_text(value: Any) -> str:
    """Text as it is, none as nothing, the rest as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def mapping(value: Any) -> Row:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def rows_of(values: Row, key: str) -> list[Row]:
    """The mappings among `values[key]`."""
    found = values.get(key)
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, Sequence) else []


def score_of(row: Row, key: str) -> dict[str, Any]:
    """`row[key]` with all of value, low and high, each of which may be None."""
    score = mapping(row.get(key))
    return {part: score.get(part) for part in ("value", "low", "high")}


def lower_is_better(row: Row) -> bool:
    """Whether a task's or a probe's score is a loss."""
    metric = as_text(row.get("metric")).lower()
    return row.get("kind") == "reference" or any(word in metric for word in ("nats", "loss", "perplexity"))


def shorten(text: str, limit: int) -> str:
    """`text`, or its first `limit` characters and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]}\n… ({len(text) - limit:,} more characters)"


def clip(name: Any, limit: int) -> str:
    """A name on one line of at most `limit` characters, without anything that a drawing could not hold."""
    text = " ".join(as_text(name).translate(CONTROL).encode("utf-8", "replace").decode().split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
