"""Registered versions without a training: a run with predictions, results and files, as `ift run` leaves them.

In:  a tracking URI, a folder, which of the items are right before and after.
Out: a version in the registry.

    version = make_version(uri, tmp_path / "a", "reviews", tuned=0.9)    # '1'
"""

import random
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ift import spec, storage
from ift.errors import IftError
from ift.evaluate import forgetting
from ift.evaluate.evaluator import write
from ift.summary import tags_of
from ift.tracking import card, gate, promotion
from ift.tracking.registry import Registry, register
from ift.tracking.run import Tracker

ITEMS = 120


def predictions(task: float, probe: float, *, seed: int = 0, items: str = "a") -> list[dict[str, Any]]:
    """Of a model that is right on these shares of a task's and of a probe's items; the hard ones are the last."""
    found = []
    for suite, name, share in (("task", "reviews", task), ("probe", "words", probe)):
        for number in range(ITEMS):
            right = number < share * ITEMS
            found.append(
                {
                    "suite": suite,
                    "name": name,
                    "id": f"{items}-{number}",
                    "kind": "multiple_choice",
                    "metric": "accuracy" if suite == "task" else None,
                    "prompt": f"{items}: what is {number}? <script>alert(1)</script>",
                    "task_kind": "classification" if suite == "task" else "",
                    "output": "good" if right else "bad",
                    "expected": "good",
                    "predicted": "good" if right else "bad",
                    "label": "good",
                    "score": float(right),
                    "chance": 0.5,
                }
            )
    random.Random(seed).shuffle(found)
    return sorted(found, key=lambda p: (p["suite"] != "task", p["id"]))


def make_version(
    uri: str,
    folder: Path,
    name: str,
    *,
    base: tuple[float, float] = (0.5, 0.8),
    tuned: tuple[float, float] = (0.9, 0.8),
    items: str = "a",
    summary: Mapping[str, Any] | None = None,
    weights: int = 1000,
) -> str:
    """A version whose run was right on these shares of (task, probe). `summary` takes the place of parts of its."""
    before, after = predictions(*base, items=items), predictions(*tuned, items=items)
    tasks, probes = forgetting.compare(before, after)
    judged = gate.decide(tasks, probes, max_drop=0.05)
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model" / "model.safetensors").write_bytes(bytes(weights))
    found: dict[str, Any] = {
        "name": name,
        "task": tasks,
        "probes": probes,
        "gate": judged,
        "forgetting": forgetting.summary(probes, breach=gate.breached(judged)),
        "model": {"source": "someone/base"},
        "train": {
            "method": "full",
            "reload_error": 0.0,
            "finished": uuid.uuid4().hex,
            "steps": 3,
            "workers": 1,
            "device": "cpu",
        },
        "stream": {"hash": f"{items}-4f1c", "examples": 600},
        "licenses": {"reviews": "MIT"},
        "data": {"decontaminate": 13, "contaminated": 2, "digest": "d"},
        "files": {"config.json": 23, "model.safetensors": weights},
    }
    for key, value in (summary or {}).items():
        found[key] = {**found[key], **value} if key in ("train", "data") else value
    storage.write_json(folder / "model" / "ift.json", found)
    for stage, answers in (("baseline", before), ("evaluate", after)):
        write(folder / stage / "predictions.parquet", answers, [0.0] * len(answers))
    tracker = Tracker(folder, uri, "made", folder.name, notify=print, interval=0.1)
    tracker.start({"seed": 17, "train.epochs": 1, "items": items}, {})
    for stage in ("baseline", "evaluate"):
        tracker.log_artifact(folder / stage / "predictions.parquet", stage)
    assert tracker.close()
    page = card.describe(found)
    (folder / "spec.yaml").write_text(
        f"name: {name}\nmodel: {{source: someone/base, revision: main}}\ntasks: [rotten_tomatoes]\n"
    )
    tags = tags_of(spec.load(folder / "spec.yaml"), found)
    return register(tracker.run_id, folder / "model", name, uri=uri, description=page, tags=tags)


def check_race(uri: str, folder: Path) -> None:
    """Of two promotions at once one wins, and the other is told."""
    for name in ("a", "b"):
        make_version(uri, folder / name, "reviews")
    start = threading.Barrier(2)

    def go(which: str) -> int | str:
        registry = Registry(uri)
        version = registry.version("reviews", which)
        decision = promotion.decide(registry, version, None)
        start.wait()
        try:
            return promotion.promote(registry, version, "champion", decision, by="somebody").version
        except IftError as error:
            return str(error)

    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(go, ("1", "2")))
    ((won,), (told,)) = ([e for e in ended if isinstance(e, kind)] for kind in (int, str))
    assert told.startswith("somebody else has just moved `champion`: version ")
    registry = Registry(uri)
    assert registry.aliases("reviews") == {"candidate": 2, "champion": won}
    assert [move.version for move in promotion.history(registry, "reviews", "champion")] == [won]
