"""`ift reproduce`: a registered version once more, from what the registry knows of it.

In:  the tracking URI, a model's name and version.
Out: a run in a folder of its own, which registers nothing; and beside each other, of then and of now, the stream's
     hash, the losses of every step, and the scores.

    reproduce("sqlite:///mlflow.db", "reviews", "3", folder, terminal=terminal)["stream"]    # True

The stream must be the same to the byte. Losses must be too where it ran on a CPU like this one with as many workers;
on GPUs of the same kind they may differ by `GPU_TOLERANCE`, because their sums have no fixed order; elsewhere the
difference is told and not judged.
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ift import pipeline, storage
from ift import spec as specs
from ift.console import Terminal
from ift.errors import IftError
from ift.spec import Spec
from ift.summary import versions
from ift.tracking.registry import Registry, Version

Found = dict[str, Any]
GPU_TOLERANCE = 0.01  # relative, of the loss of a step


def reproduce(uri: str, name: str, which: str, folder: Path, *, terminal: Terminal) -> Found:
    """Run a version's spec again in `folder` and compare. Raises `IftError` where the version's run has left no spec,
    and, before anything is trained, where the stream is another one."""
    registry = Registry(uri)
    version = registry.version(name, which)
    before, spec = registry.summary(version), _spec(registry, version)
    if before is None:
        raise IftError(
            f"the files of {version} hold no results (ift.json)", wanted="a version that `ift run` registered"
        )
    for package, then in before["versions"].items():
        if (now := versions().get(package)) != then:
            terminal.note(f"{package} was {then} then, and is {now or 'not installed'} now")
    prepared = pipeline.prepare(spec, folder, terminal)
    then, now = before["stream"]["hash"], prepared["hash"]
    if then != now:
        raise IftError(
            f"the stream of {version} cannot be made again: {now} here, {then} then",
            wanted="the same rows and templates, the same tokenizer, the same versions of ift and its libraries",
            hint=_why(before, prepared),
        )
    terminal.say(f"the stream is the same to the byte: {now}")
    after = pipeline.measure(spec, folder, terminal)
    found = compared(before, after, registry.losses(version), _losses(folder))
    _show(version, found, terminal)
    storage.write_json(folder / "reproduced.json", {"version": str(version), **found})
    return found


def _spec(registry: Registry, version: Version) -> Spec:
    """The resolved spec of the version's run, which tracks where the version is registered."""
    with tempfile.TemporaryDirectory() as scratch:
        spec = specs.load(registry.artifact(version, "spec.yaml", Path(scratch)))
    tracking = spec.tracking.model_copy(update={"uri": registry.uri})
    return spec.model_copy(update={"tracking": tracking, "name": f"{spec.name}-reproduced"[:100]})


def _why(before: Mapping[str, Any], prepared: Mapping[str, Any]) -> str:
    """Where to look, from what the two have counted."""
    stream = before["stream"]
    counts = [
        f"{key} {stream[key]:,} then, {prepared[key]:,} here"
        for key in ("examples", "documents", "tokens")
        if isinstance(stream.get(key), int) and stream[key] != prepared.get(key)
    ]
    return "; ".join(counts) or "as many examples and tokens: the words, or their order, differ"


def _losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in storage.read_jsonl(folder / "metrics.jsonl")}


def compared(
    before: Mapping[str, Any], after: Mapping[str, Any], then: Mapping[int, float], now: Mapping[int, float]
) -> Found:
    """What of a run came out again. `then` and `now` are the losses by step; a step that one of them lacks differs.

    `losses` is whether they are the same as far as this hardware allows to say: None where it is of another kind.
    """
    steps = sorted({*then, *now})
    worst = max(
        (_apart(then.get(step, math.nan), now.get(step, math.nan)) for step in steps), default=math.inf
    )
    trained = before["train"], after["train"]
    same_kind = all(trained[0].get(key) == trained[1].get(key) for key in ("device", "workers", "precision"))
    gpu = "gpu_peak_memory_gib" in after["train"]
    rows = [
        {"name": old["name"], "then": old["tuned"]["value"], "now": new["tuned"]["value"]}
        for key in ("task", "probes")
        for old, new in zip(before[key], after[key], strict=True)
    ]
    return {
        "stream": before["stream"]["hash"] == after["stream"]["hash"],
        "same_kind": same_kind,
        "steps": len(steps),
        "worst_difference": worst,
        "losses": (worst <= (GPU_TOLERANCE if gpu else 0.0)) if same_kind else None,
        "devices": [f"{t.get('workers')} × {t.get('device', 'unknown')}" for t in trained],
        "scores": rows,
    }


def _apart(one: float, other: float) -> float:
    """Relative difference; 0 where both are no number, infinite where one of them is none."""
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def _show(version: Version, found: Found, terminal: Terminal) -> None:
    worst, steps = found["worst_difference"], found["steps"]
    same = "equal to the bit" if worst == 0 else f"apart by {worst:.1e} at most, relative"
    terminal.say(f"\nlosses of {steps:,} steps: {same}")
    if not found["same_kind"]:
        terminal.note(f"it ran on {found['devices'][0]} then, on {found['devices'][1]} now: not judged")
    for row in found["scores"]:
        mark = "" if row["then"] == row["now"] else "   differs"
        terminal.say(f"    {row['name']}: {row['then']:.4f} then, {row['now']:.4f} now{mark}")
    verdict = {
        True: "reproduced",
        False: "NOT reproduced: the losses differ",
        None: "the stream is reproduced",
    }
    terminal.say(f"{version}: {verdict[found['losses']]}")
