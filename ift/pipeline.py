"""The main job: prepare -> baseline -> train -> evaluate -> register.

In:  a `Spec`, a run folder, a `Terminal`.
Out: `summary.json` in the run folder, and everything that it names.

    run(spec.load(Path("jobs/quickstart.yaml")), Path("runs/quickstart"), terminal)

Each stage writes its artefacts and, last of all, a manifest. Run again, the job goes on with the first stage
that has none; what a stage needs of earlier ones it reads from their folders (stages.py).

    runs/quickstart/
      spec.yaml            the spec with every default filled in
      model.json           the version that the run began with, where its model is an alias in MLflow
      prepare/ baseline/ train/ evaluate/ register/     a stage each, with its manifest.json
      prompting/3/         the base model behind 3 solved examples, where `evaluate.shots` asks for it
      second/              another run, where the first forgot too much and `forgetting.on_breach` says so
      model/               the tuned model, an ordinary Hugging Face folder
      metrics.jsonl        a line a training step;  validation.jsonl  a line an epoch
      summary.json         the result in numbers;   report.html       the result in pictures
      packages.txt         every installed package with its version
      outbox.jsonl  system.jsonl  tracking.json     what MLflow is told, and how much of it has arrived
      run.log              everything that libraries had to say
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ift
from ift import cluster, fetching, storage
from ift import spec as specs
from ift.console import Terminal
from ift.errors import IftError
from ift.redaction import without_secrets
from ift.spec import Spec
from ift.stages import FITTING, Job
from ift.summary import STAGES, Manifest, done, prompting_of, shots_left, shown, summary_of, versions

SECOND, LORA = "second", "lora"  # folders of further runs inside a run's own


def run(spec: Spec, folder: Path, terminal: Terminal) -> Manifest:
    """Do what is left to do of `spec` in `folder`; return the summary.

    Raises `IftError` for anything that the user can mend, most of it before any Ray process starts.
    """
    spec = claim(folder, spec)
    if all(done(folder, stage) for stage in STAGES) and not _left(spec, folder):
        summary = storage.read_json(folder / "summary.json") or {}
        terminal.say(f"{spec.name} is finished already in {folder}; nothing to do. Its result:")
        terminal.summary(summary)
        return summary
    job = Job(spec, folder, terminal)
    job.check()  # what is wrong is found here, before a cluster or a run in MLflow exists
    with tracked(job), ExitStack() as further:
        _work(job)
        jobs, summaries = [job], [summary_of(spec, folder)]
        if other := _second(job, summaries[0]):
            further.enter_context(tracked(other, parent=job.folder))
            _work(other)
            jobs.append(other)
            summaries.append(summary_of(other.spec, other.folder))
        chosen = min(range(len(jobs)), key=lambda i: _rank(summaries[i]))
        more: Manifest = {}
        if len(jobs) > 1:
            more["attempts"] = [{**_attempt(s), "chosen": i == chosen} for i, s in enumerate(summaries)]
        if spec.evaluate.shots:
            more["prompting"] = prompting_of(folder, {"tuned": jobs[chosen].folder})
        summary = jobs[chosen].register(folder, {**summaries[chosen], **more})
        if chosen:
            job.tell_of_other(folder, summary)
    terminal.summary(summary)
    return summary


def prepare(spec: Spec, folder: Path, terminal: Terminal) -> Manifest:
    """The first stage alone: the stream that `run` would train on, in `folder`, where `run` goes on from it."""
    spec = claim(folder, spec)
    job = Job(spec, folder, terminal)
    job.check()
    if not done(folder, "prepare"):
        with cluster.connect(spec.cluster.address, workers=None) as resources:
            job.prepare(resources)
    manifest = done(folder, "prepare") or {}
    terminal.mixture(manifest)
    return manifest


def measure(spec: Spec, folder: Path, terminal: Terminal) -> Manifest:
    """Everything but registering: what the run came to, as `summary.json` would have it."""
    spec = claim(folder, spec)
    job = Job(spec, folder, terminal)
    job.check()
    with tracked(job):
        _work(job)
    return summary_of(spec, folder)


def compare(spec: Spec, folder: Path, terminal: Terminal, *, lora: bool) -> list[Manifest]:
    """Would prompting have done: the run, the base model behind `evaluate.shots`, and where asked a run with LoRA.

    A row a task, as evaluate/compare.py has them.
    """
    spec = fetching.pinned(spec, folder)
    summary = run(spec, folder, terminal)
    rows: list[Manifest] = summary["prompting"]
    if lora and summary["train"]["method"] != "lora":
        other = _other(spec, folder / LORA, terminal, LORA)
        other.check()
        with tracked(other, parent=folder):
            _work(other)
        rows = prompting_of(folder, {"tuned": Path(summary["run_dir"]), "LoRA": other.folder})
        summary["prompting"] = rows
        storage.write_json(folder / "summary.json", summary)
        Job(spec, Path(summary["run_dir"]), terminal, header=False).write_report(folder, summary)
        terminal.prompting(rows)  # of the run alone the summary has shown it
    return rows


def claim(folder: Path, spec: Spec) -> Spec:
    """Make `folder` this spec's, and return it with the model's version pinned; refuse a run of another spec.

    The sections `tracking` and `cluster` may differ: they say where a run happens, not what it is. So may the
    number of solved examples that the base model is also asked with, and, as long as it trains, how it fits into
    memory: a checkpoint goes on under any of that.
    """
    spec = fetching.pinned(spec, folder)
    path = folder / "spec.yaml"
    if path.exists() and any(done(folder, stage) for stage in STAGES):
        old = dict(specs.flatten(specs.load(path).model_dump(by_alias=True, mode="json")))
        new = without_secrets(dict(specs.flatten(spec.model_dump(by_alias=True, mode="json"))))
        free: tuple[str, ...] = ("tracking.", "cluster.", "evaluate.shots", "evaluate.draws")
        if not done(folder, "train"):
            free += tuple(f"train.{key}" for key in FITTING)
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith(free)]
        if changed:
            raise IftError(
                f"{folder} holds a run of another spec; it differs in "
                + "; ".join(f"`{k}`: {old.get(k)!r} there, {new.get(k)!r} here" for k in changed[:5]),
                wanted="the same spec, to go on with that run",
                hint="choose another folder with --output DIR, or another `name`",
            )
    storage.write_text(path, without_secrets(specs.dump(shown(spec))))
    return spec


# ── one run ──


def _left(spec: Spec, folder: Path) -> bool:
    """Whether anything is to be done that needs a cluster."""
    return not all(done(folder, stage) for stage in STAGES[:-1]) or bool(shots_left(spec, folder))


def _work(job: Job) -> None:
    """All stages that need a cluster."""
    if _left(job.spec, job.folder):
        with (
            cluster.connect(job.spec.cluster.address, workers=job.workers_asked) as resources,
            job.tracker.nodes_too(),
        ):
            job.check_cluster()
            job.prepare(resources)
            resources = cluster.with_gpu(60 * job.spec.cluster.gpu_wait_minutes, job.terminal.note)
            job.plan(resources)
            job.baseline(resources)
            job.prompting(resources)
            job.train(resources)
            # hours later nodes may have come or gone: what is here now is counted again
            job.evaluate(cluster.with_gpu(60 * job.spec.cluster.gpu_wait_minutes, job.terminal.note))


@contextmanager
def tracked(job: Job, parent: Path | None = None) -> Iterator[None]:
    """The job's run in MLflow, which ends with the block; a child of that of the folder `parent`, if there is one."""
    from ift.tracking import lineage
    from ift.tracking.run import ending

    params = dict(specs.flatten(job.spec.model_dump(by_alias=True, mode="json")))
    params |= {f"versions.{name}": version for name, version in versions().items()}
    tags = {"ift.version": ift.__version__, "ift.folder": str(job.folder), **lineage.provenance(Path.cwd())}
    job.tracker.start(params, tags, parent=parent)
    storage.write_text(job.folder / "packages.txt", lineage.packages())
    for name in ("spec.yaml", "packages.txt"):
        job.tracker.log_artifact(job.folder / name)

    def end(status: str) -> None:
        if not job.tracker.closed:  # registering ends it itself
            job.tracker.close(status, timeout=10)

    with ending(end):
        yield


# ── a second run, where the first forgot too much ──


def _second(job: Job, found: Manifest) -> Job | None:
    """The run that may forget less than what was `found` of the first; None where none is asked for or due."""
    from ift.tracking import gate

    policy = job.spec.forgetting.on_breach
    if policy not in ("replay", "lora") or not gate.breached(found["gate"]):
        return None
    if policy == "lora" and found["train"]["method"] == "lora":
        job.terminal.note("it forgot too much, with LoRA already: forgetting.on_breach has no answer to that")
        return None
    why = "; ".join(f"{row['check']}: {row['detail']}" for row in gate.breaching(found["gate"])[:3])
    words = "with general data mixed in" if policy == "replay" else "with LoRA instead of all weights"
    job.terminal.note(f"it forgot too much ({why}): a second run, {words} (forgetting.on_breach)")
    other = _other(job.spec, job.folder / SECOND, job.terminal, policy)
    other.check()
    return other


def _other(spec: Spec, folder: Path, terminal: Terminal, way: str) -> Job:
    """The same run with LoRA, or with replay, in a folder of its own; it registers under the same name."""
    changed: dict[str, Any] = {
        "name": f"{spec.name}-{way}"[:100],
        "tracking": spec.tracking.model_copy(
            update={"experiment": spec.experiment, "register_as": spec.registered_name}
        ),
        "evaluate": spec.evaluate.model_copy(update={"shots": ()}),
        "forgetting": spec.forgetting.model_copy(update={"on_breach": "refuse", "replay": None}),
    }
    if way == "lora":
        if note := spec.train.rate_note("lora"):
            terminal.note(note)
        changed["train"] = spec.train.model_copy(update={"method": "lora"})
    else:
        changed["mixture"] = spec.second_mixture
    other = spec.model_copy(update=changed)
    return Job(claim(folder, other), folder, terminal, header=False)


def _rank(summary: Manifest) -> tuple[bool, int, float]:
    """The best first: what did not forget too much, then the gate's verdict, then the gain."""
    from ift.tracking import gate

    gains = [row["gain"]["value"] for row in summary["task"] if not row["held_out"]]
    verdict = gate.BEST_TO_WORST.index(summary["gate"]["verdict"])
    return gate.breached(summary["gate"]), verdict, -sum(gains) / max(1, len(gains))


def _attempt(summary: Manifest) -> Manifest:
    """What one of several runs gave, in short."""
    from ift.tracking import gate

    return {
        "name": summary["name"],
        "folder": summary["run_dir"],
        "method": summary["train"]["method"],
        "verdict": summary["gate"]["verdict"],
        "breach": summary["forgetting"]["breach"],
        "mean_drop": summary["gate"]["mean_drop"],
        "worst_drop": summary["gate"]["worst_drop"],
        "worst_probe": summary["gate"]["worst_probe"],
        "breaches": gate.breaches(summary["gate"]),
        "gains": {row["name"]: row["gain"]["value"] for row in summary["task"] if not row["held_out"]},
    }
