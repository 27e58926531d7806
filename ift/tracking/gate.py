"""Whether a tuned model may go on: what it gained on its tasks against what it forgot on the probes.

In:  the `task` and `probes` lists of a run's summary, and the largest drop that is tolerated.
Out: one verdict, pass, fail or unclear, and a line for every check that says why.

    gain, drop = {"value": 0.3, "low": 0.2, "high": 0.4}, {"value": 0.01, "low": -0.02, "high": 0.04}
    decide([{"name": "reviews", "gain": gain}], [{"name": "words", "drop": drop}], max_drop=0.05)["verdict"]
    # 'pass'

A gain passes where its whole interval is above 0, and fails where it, or its whole interval, is not; of fewer than six
items, or where chance explains it (`p_gain`), it is unclear at best. A drop
passes up to `max_drop`; above, it fails where chance does not explain it, and is unclear otherwise. Chance is
tested with the number of probes counted (`p_corrected` below 0.05), so that of twenty runs that forgot nothing one at
most is accused; where a drop comes without that number, its whole interval has to be above 0. A held-out task,
which was not trained on, is judged as a probe is. The worst line decides; what was not measured is unclear.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ift.evaluate import forgetting
from ift.evaluate.statistics import FEW

BEST_TO_WORST = ("pass", "unclear", "fail")
LEVEL = 0.05  # how often a run that forgot nothing may be accused of a drop


def decide(
    tasks: Sequence[Mapping[str, Any]],
    probes: Sequence[Mapping[str, Any]],
    *,
    max_drop: float,
    min_gain: float = 0.0,
) -> dict[str, Any]:
    """The verdict, the mean and the worst drop, and a line for every check."""
    lines = [_held_out_line(t, max_drop) if t.get("held_out") else _task_line(t, min_gain) for t in tasks]
    lines += [_probe_line(probe, max_drop) for probe in probes]
    if all(task.get("held_out") for task in tasks):
        words = "no task that was trained on was measured: what the model gained is unknown"
        lines.append(line("gain", "tasks", "unclear", words))
    if not probes:
        lines.append(
            line("forgetting", "probes", "unclear", "forgetting was not measured: there are no probes")
        )

    mean_drop, worst_drop, worst_probe = forgetting.mean_and_worst(probes)
    return {
        "verdict": worst(lines),
        "mean_drop": mean_drop,
        "worst_drop": worst_drop,
        "worst_probe": worst_probe,
        "max_drop": max_drop,
        "lines": lines,
    }


def beside(
    tasks: Sequence[Mapping[str, Any]], probes: Sequence[Mapping[str, Any]], *, max_drop: float
) -> list[dict[str, str]]:
    """A line for every check against a model that it would follow: no task may be worse, no probe by more than
    `max_drop`."""
    judged = [_held_out_line(task, max_drop if task.get("held_out") else 0.0) for task in tasks]
    judged += [_probe_line(probe, max_drop) for probe in probes]
    return [{**row, "of": "champion"} for row in judged]


def worst(lines: Sequence[Mapping[str, str]]) -> str:
    """The verdict of all lines together."""
    return max((line["verdict"] for line in lines), key=BEST_TO_WORST.index)


def line(of: str, check: str, verdict: str, detail: str) -> dict[str, str]:
    """One check: what it is of (gain, forgetting, …), its name, its verdict, and why."""
    return {"of": of, "check": check, "verdict": verdict, "detail": detail}


def breached(decision: Mapping[str, Any]) -> bool:
    """Whether more was forgotten than is tolerated, and chance does not explain it."""
    return bool(breaching(decision))


def breaches(decision: Mapping[str, Any]) -> list[str]:
    """The probes and held-out tasks on which it was, as the gate's lines name them."""
    return [row["check"] for row in breaching(decision)]


def breaching(decision: Mapping[str, Any]) -> list[dict[str, str]]:
    """The gate's lines that say so."""
    return [row for row in decision["lines"] if row["verdict"] == "fail" and row["of"] == "forgetting"]


def _by(min_gain: float) -> str:
    return f" by more than {min_gain:g}" if min_gain else ""


def _wanted(min_gain: float) -> str:
    return f", above {min_gain:g} wanted" if min_gain else ""


def _task_line(task: Mapping[str, Any], min_gain: float) -> dict[str, str]:
    gain, low, high = (_number(task, "gain", key) for key in ("value", "low", "high"))
    shown = f"gain {_interval(gain, low, high)}{_items(task)}"
    if gain is None:
        verdict, detail = "unclear", "its gain was not measured"
    elif math.isnan(gain):
        verdict, detail = "fail", "its gain is not a number: the tuned model's scores are broken"
    elif gain <= min_gain or (high is not None and high <= min_gain):
        verdict, detail = "fail", f"{shown}: no better than the base model{_by(min_gain)}"
    elif low is not None and low > min_gain and not _too_few(task):
        verdict, detail = "pass", f"{shown}{_wanted(min_gain)}"
    else:
        verdict, detail = "unclear", f"{shown}: too few items to tell this gain apart from chance"
    return line("gain", _name("task", task), verdict, detail)


def _too_few(task: Mapping[str, Any]) -> bool:
    items, p = task.get("items"), task.get("p_gain")
    return (items is not None and items < FEW) or (p is not None and p >= LEVEL)


def _held_out_line(task: Mapping[str, Any], max_drop: float) -> dict[str, str]:
    """A task that was not trained on need not gain; it may lose as little as a probe."""
    gain = task.get("gain") or {}
    loss = {"value": gain.get("value"), "low": gain.get("high"), "high": gain.get("low")}
    drop = {key: None if value is None else -value for key, value in loss.items()}
    return {**_probe_line({**task, "drop": drop}, max_drop), "check": _name("task", task)}


def _probe_line(probe: Mapping[str, Any], max_drop: float) -> dict[str, str]:
    drop, low, high = (_number(probe, "drop", key) for key in ("value", "low", "high"))
    shown = f"drop {_interval(drop, low, high)}{_items(probe)}"
    if drop is None:
        verdict, detail = "unclear", "its drop was not measured"
    elif math.isnan(drop):
        verdict, detail = "fail", "its drop is not a number: the tuned model's scores are broken"
    elif drop == -math.inf:
        verdict, detail = "unclear", "the base model's loss is infinite: nothing is known of what was lost"
    elif _number(probe, "tuned", "value") == math.inf:
        verdict, detail = "fail", "the tuned model's loss is infinite: its scores are broken"
    elif drop <= max_drop:
        verdict, detail = "pass", f"{shown}, at most {max_drop:g} allowed"
    elif _beyond_chance(probe, low):
        verdict, detail = "fail", f"{shown}, at most {max_drop:g} allowed{_p(probe)}"
    else:
        verdict, detail = (
            "unclear",
            f"{shown}, at most {max_drop:g} allowed{_p(probe)}: too few items to tell this drop apart from chance",
        )
    return line("forgetting", _name("probe", probe), verdict, detail)


def _beyond_chance(probe: Mapping[str, Any], low: float | None) -> bool:
    p = probe.get("p_corrected")
    return low is not None and low > 0 if p is None else p < LEVEL


def _p(probe: Mapping[str, Any]) -> str:
    p = probe.get("p_corrected")
    return "" if p is None else f" (p {p:.3f})"


def _number(entry: Mapping[str, Any], quantity: str, key: str) -> float | None:
    value = (entry.get(quantity) or {}).get(key)
    return None if value is None else float(value)


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    text = "unknown" if value is None else f"{value:+.3f}"
    return text if low is None or high is None else f"{text} [{low:+.3f}, {high:+.3f}]"


def _items(entry: Mapping[str, Any]) -> str:
    count = entry.get("items")
    return "" if count is None else f" over {count} item{'' if count == 1 else 's'}"


def _name(kind: str, entry: Mapping[str, Any]) -> str:
    return f"{kind} {entry['name']}" + (f" ({entry['metric']})" if entry.get("metric") else "")
