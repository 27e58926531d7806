"""What a run came to, in numbers: read from what its stages have left in its folder.

In:  the spec, the run's folder.
Out: `summary.json`'s content, the same as MLflow's metrics and tags.

    summary_of(spec, Path("runs/quickstart"))["gate"]["verdict"]    # 'pass'
"""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ift
from ift import storage
from ift.fetching import REGISTERED
from ift.spec import Spec

Manifest = dict[str, Any]
STAGES = ("prepare", "baseline", "train", "evaluate", "register")
_OF_PREPARE_AND_TRAIN_ALONE = (
    "shards",
    "seconds",
    "peak_memory_bytes",
    "templates",
    "licenses",
    "validation",
    "items",
    "epoch_ends",
    "inputs",
    "dropped",
    "reasons",
)


def done(folder: Path, stage: str) -> Manifest | None:
    """The manifest of a stage that is done; else None."""
    return storage.read_json(folder / stage / "manifest.json")


def predictions_of(folder: Path, stage: str) -> list[Manifest]:
    """What a stage predicted, an item each."""
    import pyarrow.parquet as pq

    rows: list[Manifest] = pq.read_table(folder / stage / "predictions.parquet").to_pylist()
    return rows


def shown(spec: Spec) -> Spec:
    """`spec` as it may be written down: a password in the tracking URI is left out."""
    from ift.redaction import without_secrets

    tracking = spec.tracking.model_copy(update={"uri": without_secrets(spec.tracking.uri)})
    return spec.model_copy(update={"tracking": tracking})


def summary_of(spec: Spec, folder: Path) -> Manifest:
    """The result of a run whose stages up to `evaluate` are done."""
    from ift.evaluate import forgetting
    from ift.models import base
    from ift.tracking import gate

    stages = {stage: done(folder, stage) or {} for stage in STAGES[:-1]}
    prepared, trained = stages["prepare"], stages["train"]
    prompted = prompted_shots(folder)
    timed = {**stages, **{f"prompting/{n}": done(folder, f"prompting/{n}") or {} for n in prompted}}
    tasks, probes = forgetting.compare(predictions_of(folder, "baseline"), predictions_of(folder, "evaluate"))
    peak = max(stage.get("peak_memory_bytes", 0) for stage in timed.values())
    encoder = base.is_encoder_decoder(folder / "model")
    judged = gate.decide(tasks, probes, max_drop=spec.forgetting.max_drop)
    return {
        "name": spec.name,
        "status": "finished",
        "run_dir": str(folder),
        "model_dir": str(folder / "model"),
        "report": str(folder / "report.html"),
        "model": spec.model.model_dump(exclude_none=True),
        "model_class": "AutoModelForSeq2SeqLM" if encoder else "AutoModelForCausalLM",
        "stream": {
            **_without(prepared, _OF_PREPARE_AND_TRAIN_ALONE),
            "not_trained_on": sum(sum(kinds.values()) for kinds in prepared["dropped"].values()),
        },
        "train": _without(trained, _OF_PREPARE_AND_TRAIN_ALONE),
        "task": tasks,
        "probes": probes,
        "forgetting": forgetting.summary(probes, breach=gate.breached(judged)),
        "prompting": [],
        "looks": storage.read_jsonl(folder / "looks.jsonl"),
        "gate": judged,
        "licenses": prepared["licenses"],
        "data": {
            "decontaminate": spec.data.decontaminate,
            "contaminated": sum(kinds.get("contaminated", 0) for kinds in prepared["dropped"].values()),
            "digest": _digest({name: of["files"] for name, of in prepared["inputs"].items()}),
        },
        "timings": _timings(timed),
        "peak_memory_gib": peak / storage.GIB,
        "versions": versions(),
    }


def _timings(stages: Mapping[str, Manifest]) -> dict[str, float]:
    """Seconds by stage; `prompting` as one."""
    found: dict[str, float] = {}
    for name, stage in stages.items():
        name = name.partition("/")[0]
        found[name] = found.get(name, 0.0) + stage["seconds"]
    return found


def _without(manifest: Mapping[str, Any], keys: tuple[str, ...]) -> Manifest:
    return {key: value for key, value in manifest.items() if key not in keys}


def shots_left(spec: Spec, folder: Path) -> list[int]:
    """The numbers of `evaluate.shots` behind which the base model is still to be asked, with as many `draws`.

    An older ift did not write down with how many it was asked.
    """
    drawn = {n: done(folder, f"prompting/{n}") for n in spec.evaluate.shots}
    asked = spec.evaluate.draws
    return [n for n, manifest in drawn.items() if manifest is None or manifest.get("draws", asked) != asked]


def prompted_shots(folder: Path) -> list[int]:
    """The numbers of solved examples behind which the base model was asked."""
    found = [int(path.parent.name) for path in folder.glob("prompting/*/manifest.json")]
    return sorted(found)


def prompting_of(folder: Path, tuned: Mapping[str, Path]) -> list[Manifest]:
    """In-context learning beside tuning, a row a task: the base model as the run in `folder` asked it, and the
    models of the runs `tuned`, by name."""
    from ift.evaluate.compare import Way, compare
    from ift.models import base

    def way(name: str, of: Path, stage: str, **more: Any) -> Way:
        seconds = (done(of, stage) or {}).get("seconds_an_item", {})
        return Way(name, predictions_of(of, stage), seconds=seconds, **more)

    ways = [way("base, 0 shots", folder, "baseline")]
    for n in prompted_shots(folder):
        ways.append(way(f"base, {n} shot{'s' * (n > 1)}", folder, f"prompting/{n}", shots=n))
    ways += [way(name, of, "evaluate", trained=True) for name, of in tuned.items()]
    tokens = {name: _trained_tokens(of) for name, of in tuned.items()}
    context = base.context_length(next(iter(tuned.values())) / "model")
    return compare(ways, context=context, trained_tokens=tokens)


def _trained_tokens(folder: Path) -> int:
    """How many tokens the run in `folder` was trained on: of those prepared, fewer where training ended early."""
    prepared, trained = (done(folder, stage) or {} for stage in ("prepare", "train"))
    share = trained["packs"] / prepared["packs"] if trained.get("packs") and prepared.get("packs") else 1.0
    return round(int(prepared.get("tokens", 0)) * share)


def means(predictions: Sequence[Manifest]) -> dict[str, float]:
    """The mean score of each task and probe."""
    scores: dict[str, list[float]] = {}
    for prediction in predictions:
        scores.setdefault(prediction["name"], []).append(prediction["score"])
    return {name: sum(values) / len(values) for name, values in scores.items()}


def numbers_of(summary: Manifest) -> dict[str, float]:
    """The summary's results as MLflow metrics: the same numbers under their dotted names."""
    found: dict[str, float] = {}
    for row in summary["task"]:
        found |= {f"task/{row['name']}/{key}": row[key]["value"] for key in ("base", "tuned", "gain")}
    for row in summary["probes"]:
        found |= {f"probe/{row['name']}/{key}": row[key]["value"] for key in ("base", "tuned", "drop")}
    for key in ("mean_drop", "worst_drop"):
        if summary["gate"].get(key) is not None:
            found[f"forgetting/{key}"] = summary["gate"][key]
    found["train/mean_tokens_per_second"] = summary["train"]["tokens_per_second"]
    found["train/final_loss"] = summary["train"]["final_loss"]
    found["peak_memory_gib"] = summary["peak_memory_gib"]
    found["seconds"] = sum(summary["timings"].values())
    return found


def stage_numbers(manifest: Manifest) -> dict[str, float]:
    """The plain numbers of a stage's manifest, and its scores."""
    plain = {k: v for k, v in manifest.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if (peak := plain.pop("peak_memory_bytes", None)) is not None:
        plain["peak_memory_gib"] = peak / storage.GIB
    return plain | {f"score/{name}": value for name, value in manifest.get("scores", {}).items()}


def beside(before: Sequence[Manifest], after: Sequence[Manifest]) -> list[Manifest]:
    """The answers of both models to the same items, a row each."""
    return [
        {
            **{key: base[key] for key in ("suite", "name", "id", "prompt", "expected")},
            "base": base["output"],
            "tuned": tuned["output"],
            "base_score": base["score"],
            "tuned_score": tuned["score"],
        }
        for base, tuned in zip(before, after, strict=True)
    ]


def tags_of(spec: Spec, summary: Manifest) -> dict[str, str]:
    """What a registered version is told apart by."""
    source = spec.model.source
    version = source.removeprefix(REGISTERED) if source.startswith(REGISTERED) else ""
    return {
        "ift.version": ift.__version__,
        "ift.base_model": source,
        "ift.base_pin": version or spec.model.revision or spec.model.sha256 or "",
        **({"ift.parent": version} if version else {}),
        "ift.spec": spec_digest(spec),
        "ift.stream": summary["stream"]["hash"],
        "ift.data": summary["data"]["digest"],
        "ift.device": f"{summary['train']['workers']} × {summary['train']['device']}",
        "ift.gate": summary["gate"]["verdict"],
        "ift.run_fingerprint": f"{summary['stream']['hash']}/{summary['train']['finished']}",
    }


def spec_digest(spec: Spec) -> str:
    """A digest of what a run is; where it happens (`tracking`, `cluster`) does not count."""
    return _digest(spec.model_dump(by_alias=True, mode="json", exclude={"tracking", "cluster"}))


def _digest(value: Any) -> str:
    return f"sha256:{storage.value_digest(value)}"


def versions() -> dict[str, str]:
    """Of Python, of this package, and of what most decides how a run comes out."""
    packages = ("torch", "ray", "deepspeed", "transformers", "mlflow")
    return {"python": platform.python_version(), "ift": ift.__version__} | {
        p: metadata.version(p) for p in packages
    }
