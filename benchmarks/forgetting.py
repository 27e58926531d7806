"""What a model forgets by the way it is taught: one task, the same with replay, a mixture, LoRA, and no teaching.

In:  seeds; jobs/experiments/forgetting.yaml, the run with one task that the others are made of.
Out: a table in Markdown, a plot of task score against mean drop, and the numbers behind both as JSON.

    .venv/bin/python benchmarks/forgetting.py --seeds 17 --output build/experiment           # about 35 minutes
    .venv/bin/python benchmarks/forgetting.py --seeds 17,18,19 --output build/experiment     # the whole of it

All ways spend the same number of supervised tokens, to within three per cent: the mixture and the run with replay have
longer answers, so they see fewer examples. All are asked the same frozen items, those of the run with one task. A seed
draws the examples, their order and the adapter's start. What is done is kept, and the same command goes on.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ift import cluster, pipeline, spec, storage
from ift.console import Terminal
from ift.evaluate import forgetting
from ift.evaluate.evaluator import write
from ift.stages import Job
from ift.summary import done, predictions_of, prompting_of

_HOUSE = Path(__file__).resolve().parents[1]
_JOB = _HOUSE / "jobs" / "experiments" / "forgetting.yaml"
_SIX = (
    "rotten_tomatoes, imdb, vader_snippets, tweet_entities, capitals, chatterbot"  # all that packages carry
)
_TASK = "rotten_tomatoes"
_WAYS = {
    "one task": [],
    "one task, 5 % replay": ["mixture.replay={share: 0.05, tasks: [chatterbot]}"],
    "mixture of six tasks": [f"tasks=[{_SIX}]", "mixture.rule=equal"],
    # LoRA wants about ten times the learning rate (Schulman et al. 2025, LoRA without regret)
    "one task, LoRA": ["train.method=lora", "train.learning_rate=5.0e-4"],
    "one task, LoRA, lower rate": ["train.method=lora", "train.learning_rate=1.0e-4"],
}
_ONE = next(iter(_WAYS))


def main() -> None:
    """Do what is left to do; print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="17,18,19", help="between commas")
    parser.add_argument("--output", type=Path, default=_HOUSE / "build" / "experiment")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the spec, for a smaller try"
    )
    arguments = parser.parse_args()
    terminal = Terminal(Console())
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    output = arguments.output.absolute()
    rows = [row for seed in seeds for row in of_seed(seed, output / f"seed-{seed}", arguments.set, terminal)]
    storage.write_json(output / "forgetting.json", {"rows": rows})
    table = markdown(rows)
    storage.write_text(output / "forgetting.md", table)
    plot(rows, output / "forgetting.svg")
    print(f"\n{table}\n{output / 'forgetting.svg'}")


def of_seed(seed: int, folder: Path, changes: Sequence[str], terminal: Terminal) -> list[dict[str, Any]]:
    """A row a way of teaching, and one for each number of solved examples in the prompt."""
    rows: list[dict[str, Any]] = []
    budget = 0
    for name, ways in _WAYS.items():
        job = prepared(name, folder, [*ways, *changes, f"seed={seed}"], budget, terminal)
        budget = budget or manifest(job.folder, "prepare")["supervised_tokens"]
        taught(job, folder / slug(_ONE))
        rows.append({"way": name, "seed": seed, **measured(job, folder / slug(_ONE))})
    [prompted] = [
        row
        for row in prompting_of(folder / slug(_ONE), {"tuned": folder / slug(_ONE)})
        if row["name"] == _TASK
    ]
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}  # the base model itself has lost nothing
    for way in prompted["ways"]:
        if not way["trained"]:
            rows.append(
                {
                    "way": way["way"],
                    "seed": seed,
                    "score": way["score"],
                    "drop": nothing,
                    "supervised_tokens": 0,
                }
            )
    return rows


def slug(name: str) -> str:
    """A name for a folder."""
    return "".join(c if c.isalnum() else "-" for c in name)


def prepared(name: str, folder: Path, changes: Sequence[str], budget: int, terminal: Terminal) -> Job:
    """The run of one way, with as many examples as `budget` supervised tokens pay for (0: as the spec has it)."""
    place, spent = folder / slug(name), 0
    size: int | None = (storage.read_json(place / "size.json") or {}).get("size")  # an earlier start found it
    tracking = f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"
    for _ in range(5):
        sized = [f"mixture.size={size}"] if size else []
        loaded = spec.load(_JOB, [*changes, *sized, tracking])
        pipeline.claim(place, loaded)
        job = Job(loaded, place, terminal, header=False)
        if not done(place, "prepare"):
            job.check()
            with cluster.connect(None, workers=None) as resources:
                job.prepare(resources)
        found = manifest(place, "prepare")
        spent = found["supervised_tokens"]
        if not budget or abs(spent / budget - 1) <= 0.03:
            storage.write_json(place / "size.json", {"size": size})
            return job
        size = max(1, round((size or found["documents"]) * budget / spent))
        (place / "prepare" / "manifest.json").unlink()
    raise SystemExit(f"{name}: {spent:,} supervised tokens, {budget:,} wanted")


def manifest(folder: Path, stage: str) -> dict[str, Any]:
    """Of a stage that is done."""
    found = done(folder, stage)
    assert found, f"{stage} is not done in {folder}"
    return found


def taught(job: Job, one: Path) -> None:
    """Train, and ask the items of the run in the folder `one`."""
    if done(job.folder, "asked"):
        return
    with cluster.connect(None, workers=job.workers_asked) as resources, pipeline.tracked(job):
        job.plan(resources)
        if job.folder == one:
            job.baseline(resources)
            job.prompting(resources)
        job.train(resources)
        items = storage.read_jsonl(one / "prepare" / "items.jsonl")
        with job.terminal.stage("evaluate") as stage:
            answers, seconds = job.predict(
                job.folder / "model", items, resources, stage, predictions_of(one, "baseline")
            )
            for name in ("asked", *(["evaluate"] if job.folder == one else [])):
                took = write(job.folder / name / "predictions.parquet", answers, seconds)
                storage.write_json(
                    job.folder / name / "manifest.json", {"seconds_an_item": took, "seconds": 0.0}
                )


def measured(job: Job, one: Path) -> dict[str, Any]:
    """What the way of `job` gained and forgot, on the items of the run in the folder `one`."""
    before, after = predictions_of(one, "baseline"), predictions_of(job.folder, "asked")
    tasks, probes = forgetting.compare(before, after)
    [task] = [row for row in tasks if row["name"] == _TASK]
    stream = manifest(job.folder, "prepare")
    return {
        "score": task["tuned"],
        "drop": forgetting.mean_drop(before, after),
        "worst": max((row["drop"]["value"], row["name"]) for row in probes),
        "probes": {row["name"]: row["drop"] for row in probes},
        "answer_words": {row["name"]: row["answer_words"] for row in probes if "answer_words" in row},
        "supervised_tokens": stream["supervised_tokens"],
        "examples": stream["examples"],
        "seconds": manifest(job.folder, "train")["seconds"],
    }


def _over_seeds(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [row[key]["value"] for row in rows]
    if len(values) == 1:
        only = rows[0][key]
        return f"{only['value']:.3f} [{only['low']:.3f}, {only['high']:.3f}]"
    mean = sum(values) / len(values)
    return f"{mean:.3f} ({min(values):.3f} to {max(values):.3f})"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a way: of one seed with the interval over items, of several their mean and range."""
    lines = [
        "| way | supervised tokens | score on the task | mean drop on the probes | worst drop |",
        "|---|---|---|---|---|",
    ]
    for way in dict.fromkeys(row["way"] for row in rows):
        these = [row for row in rows if row["way"] == way]
        worst = max((row["worst"] for row in these if "worst" in row), default=None)
        lines.append(
            f"| {way} | {these[0]['supervised_tokens']:,} | {_over_seeds(these, 'score')} | "
            f"{_over_seeds(these, 'drop')} | {f'{worst[0]:.2f} ({worst[1]})' if worst else 'none'} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Task score against mean drop, a point a seed, with intervals over items."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for way in dict.fromkeys(row["way"] for row in rows):
        these = [row for row in rows if row["way"] == way]

        def reach(key: str, these: Sequence[Mapping[str, Any]] = these) -> Any:
            return [
                [row[key]["value"] - row[key]["low"] for row in these],
                [row[key]["high"] - row[key]["value"] for row in these],
            ]

        axes.errorbar(
            [row["drop"]["value"] for row in these],
            [row["score"]["value"] for row in these],
            xerr=reach("drop"),
            yerr=reach("score"),
            fmt="o" if "worst" in these[0] else "D",
            capsize=3,
            label=way,
        )
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("mean drop on the probes, share of ability lost (right is worse)")
    axes.set_ylabel(f"{_TASK}, accuracy")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
