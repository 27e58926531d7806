"""`ift evaluate MODEL`: how any model does on tasks and probes, and what it lost against another.

In:  a run's folder, a version in MLflow or a model source; tasks, probes; another model to compare with.
Out: a table, and in a folder `summary.json`, `predictions.parquet`, and those of the other model.

    evaluate("runs/quickstart", tasks=[], probes="default", against="HuggingFaceTB/SmolLM2-135M-Instruct", ...)

Of a run's folder the run's own frozen items are asked where none are named, so that the numbers are comparable with
the run's. What was predicted before is not predicted again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ift import cluster, fetching, storage
from ift.console import Stage, Terminal
from ift.errors import IftError
from ift.models import base
from ift.summary import done, means, predictions_of

if TYPE_CHECKING:
    from ift.spec import Spec

Manifest = dict[str, Any]
_LIMIT = 500  # test examples of a named task, where nothing is said


def evaluate(
    model: str,
    *,
    terminal: Terminal,
    output: Path,
    tasks: Sequence[str] = (),
    folders: Sequence[str] = (),
    probes: str = "default",
    against: str | None = None,
    limit: int | None = None,
    ranking: str | None = None,
    engine: str | None = None,
    allow_code: bool = False,
    max_drop: float = 0.05,
    address: str | None = None,
    uri: str = "",
) -> Manifest:
    """Ask `model`, and `against`, the items of `tasks` and `probes`; print and write what came out.

    `tasks` are names of the library or paths of task files; `probes` is default, none, or names between commas. Of
    each task `limit` test examples are asked; where it is None, all of a run's own and 500 of others. What else is not
    given is as in the run's spec, or else as a spec has it by default.
    Raises `IftError` where there is no such model or task, and where there is nothing to ask.
    """
    from ift.evaluate.evaluator import number_format
    from ift.spec import EvaluateSpec

    named = {"model": _folder(model, uri, terminal, "model")}
    if against:
        named["against"] = _folder(against, uri, terminal, "against")
    items = _items(model, terminal, tasks, folders, probes, limit, allow_code)
    if any(item["metric"] == "code" for item in items):
        from ift.tasks import code

        code.make_sure(allow_code=allow_code)
    spec = _spec(model)
    given, precision = (spec.evaluate, spec.train.precision) if spec else (EvaluateSpec(), "auto")
    ranking, engine = ranking or given.ranking, engine or given.engine
    predictions: dict[str, list[Manifest]] = {}
    seconds: dict[str, dict[str, float]] = {}
    with cluster.connect(address, workers=None):
        resources = cluster.with_gpu(cluster.GPU_WAIT_S, terminal.note)
        for role in reversed(named):  # the other one first: the collapse of answers is told by its own
            with terminal.stage("evaluate" if role == "model" else "against") as stage:
                predictions[role], seconds[role] = _predict(
                    named[role],
                    items,
                    output / f"{'' if role == 'model' else 'against_'}predictions.parquet",
                    resources,
                    stage,
                    ranking=ranking,
                    engine=engine,
                    allow_code=allow_code,
                    batch_tokens=given.batch_tokens,
                    base=predictions.get("against") if against else _baseline(model, items),
                    dtype=number_format(precision, resources.gpus),
                )
    summary = {
        "model": model,
        "against": against,
        "items": len(items),
        "ranking": ranking,
        "engine": engine,
        "seconds_an_item": seconds,
        **_compared(predictions, max_drop),
    }
    storage.write_json(output / "summary.json", summary)
    _show(summary, terminal)
    terminal.say(f"\nwritten     {output / 'summary.json'}, predictions beside it")
    return summary


def transfer(
    runs: Sequence[str],
    *,
    terminal: Terminal,
    output: Path,
    address: str | None = None,
) -> Manifest:
    """What the last of `runs`, each of which went on from the model of the one before, did to the tasks of the others.

    Each run's own test items are asked of the last run's model, in the way that its spec says; what the run's own model
    made of them is in its folder. Raises `IftError` for fewer than two, for a folder that holds no finished run, and
    where programs would be run that a run's spec does not allow.
    """
    from ift import spec as specs
    from ift.evaluate import forgetting
    from ift.evaluate.evaluator import number_format

    if len(runs) < 2:
        raise IftError(
            "one run has nothing before it", wanted="two runs or more, in the order they were trained in"
        )
    folders = [Path(run) for run in runs]
    for folder in folders:
        if not done(folder, "evaluate"):
            raise IftError(f"{folder} holds no run that is finished", wanted="the folder of a finished run")
    last = base.of_run(str(folders[-1]))
    assert last is not None, f"{folders[-1]} is finished, and has no model"
    own, later = [], []
    with cluster.connect(address, workers=None):
        resources = cluster.with_gpu(cluster.GPU_WAIT_S, terminal.note)
        for number, folder in enumerate(folders):
            mine = [p for p in predictions_of(folder, "evaluate") if p["suite"] == "task"]
            own.append(_mean(mine))
            if number == len(folders) - 1:
                later.append(own[-1])
                continue
            items = [
                i for i in storage.read_jsonl(folder / "prepare" / "items.jsonl") if i["suite"] == "task"
            ]
            spec = specs.load(folder / "spec.yaml")
            with terminal.stage(folder.name) as stage:
                path = output / f"{number + 1}-{folder.name}.parquet"
                again, _ = _predict(
                    last,
                    items,
                    path,
                    resources,
                    stage,
                    dtype=number_format(spec.train.precision, resources.gpus),
                    ranking=spec.evaluate.ranking,
                    engine=spec.evaluate.engine,
                    allow_code=spec.evaluate.allow_code,
                    batch_tokens=spec.evaluate.batch_tokens,
                    base=None,
                )
            later.append(_mean(again))
    rows = [
        {"run": str(run), "own": before, "last": after, "change": after - before}
        for run, before, after in zip(runs, own, later, strict=True)
    ]
    matrix = [[own[i] if t < len(runs) - 1 else later[i] for i in range(len(runs))] for t in range(len(runs))]
    found = {"runs": rows, "backward_transfer": forgetting.backward_transfer(matrix)}
    storage.write_json(output / "transfer.json", found)
    terminal.transfer(found)
    return found


def _mean(predictions: Sequence[Manifest]) -> float:
    """The mean over tasks of their mean scores."""
    scores = means(predictions).values()
    return sum(scores) / len(scores)


def _spec(model: str) -> "Spec | None":
    """The spec of the run whose folder `model` is; None where it is something else."""
    from ift import spec as specs

    path = Path(model) / "spec.yaml"
    return specs.load(path) if path.is_file() else None


def _baseline(model: str, items: Sequence[Manifest]) -> list[Manifest] | None:
    """What the base model of the run in the folder `model` answered to `items`; None where it was not asked all."""
    if not (Path(model) / "baseline" / "predictions.parquet").is_file():
        return None

    def asked(of: Manifest) -> tuple[Any, ...]:
        return of["suite"], of["name"], of["id"]

    answers = {asked(prediction): prediction for prediction in predictions_of(Path(model), "baseline")}
    found = [answers[key] for item in items if (key := asked(item)) in answers]
    return found if len(found) == len(items) else None


def _folder(source: str, uri: str, terminal: Terminal, name: str) -> Path:
    with terminal.stage(name) as stage:
        folder = fetching.fetch(source, uri=uri, notify=stage.status)
        stage.result(str(folder))
    return folder


def _items(
    model: str,
    terminal: Terminal,
    tasks: Sequence[str],
    folders: Sequence[str],
    probes: str,
    limit: int | None,
    allow_code: bool,
) -> list[Manifest]:
    """The run's own items, or those of the named tasks and probes."""
    from ift.data.items import first_of_each

    frozen = Path(model) / "prepare" / "items.jsonl"
    if not tasks and probes == "default" and frozen.is_file():
        items = storage.read_jsonl(frozen)
        terminal.note(f"the frozen items of the run, {len(items):,}; name --tasks or --probes to ask others")
        if limit is None:
            return items
        tasks_ = first_of_each([i for i in items if i["suite"] != "probe"], limit)
        return tasks_ + [i for i in items if i["suite"] == "probe"]
    from ift.data import gather, selection
    from ift.data import items as making
    from ift.spec import DataSpec, TaskRef
    from ift.tasks import probes as probing

    chosen = probing.asked(probes if probes in ("default", "none") else probes.split(","))
    refs = [TaskRef(file=t) if t.endswith((".yaml", ".yml")) else TaskRef(name=t) for t in tasks]
    asked: list[Manifest]
    with terminal.stage("items") as stage:
        if refs:
            split = DataSpec().split
            gathered = gather.gather(
                selection.select(refs, folders=folders),
                cache=storage.cache_dir(),
                train=None,
                validation=split.validation,
                test=split.test,
                balanced=False,
                max_bad_rows=DataSpec().max_bad_rows,
                decontaminate=0,
                progress=lambda done, total: stage.progress(done >> 20, total and total >> 20, "MiB"),
                counting=lambda done, total: stage.progress(done, total, "rows"),
            )
            asked, bad = making.items_of(gathered, chosen, limit=limit or _LIMIT, allow_code=allow_code)
            if bad:
                stage.note(
                    f"{len(bad):,} test rows cannot be worded and are left out, the first: {bad[0][2]}"
                )
        else:
            asked = making.probe_items(chosen)
        if not asked:
            raise IftError(
                "there is nothing to ask",
                wanted="tasks with test examples, or probes",
                hint="--tasks trec,boolq names tasks (`ift tasks list`), --probes default asks all probes",
            )
        names = dict.fromkeys(item["name"] for item in asked)
        stage.result(f"{len(asked):,} items of {', '.join(names)}")
    return asked


def _predict(
    folder: Path,
    items: Sequence[Manifest],
    path: Path,
    resources: cluster.Resources,
    stage: Stage,
    *,
    ranking: str,
    engine: str,
    allow_code: bool,
    batch_tokens: int | Literal["auto"],
    base: list[Manifest] | None,
    dtype: str,
) -> tuple[list[Manifest], dict[str, float]]:
    from ift.evaluate.evaluator import timed, write

    stage.status("loading the model")
    predictions, seconds = timed(
        folder,
        items,
        gpus=resources.gpus,
        dtype=dtype,
        cache=storage.cache_dir(),
        batch_tokens=batch_tokens,
        ranking=ranking,
        engine=engine,
        allow_code=allow_code,
        base=base,
        progress=lambda done, total: stage.progress(done, total, "items"),
    )
    if cut := sum(p["cut"] for p in predictions):
        stage.note(f"{cut:,} prompts are longer than the model's context and lost their beginning")
    if empty := sum(p["kind"] == "generation" and not p["output"] for p in predictions):
        stage.note(f"{empty:,} answers are empty")
    stage.result(f"{len(items):,} items")
    return predictions, write(path, predictions, seconds)


def _compared(predictions: dict[str, list[Manifest]], max_drop: float) -> Manifest:
    """Tasks and probes; with another model the gate's decision and the forgetting as well."""
    from ift.evaluate import forgetting
    from ift.tracking import gate

    if "against" not in predictions:
        tasks, probes = forgetting.alone(predictions["model"])
        return {"task": tasks, "probes": probes}
    tasks, probes = forgetting.compare(predictions["against"], predictions["model"])
    decision = gate.decide(tasks, probes, max_drop=max_drop)
    return {
        "task": tasks,
        "probes": probes,
        "gate": decision,
        "forgetting": forgetting.summary(probes, breach=gate.breached(decision)),
    }


def _show(summary: Manifest, terminal: Terminal) -> None:
    terminal.scores(summary["task"], summary["probes"])
    if "gate" not in summary:
        return
    found = summary["forgetting"]
    if found["worst"]:
        words = "more than is tolerated" if found["breach"] else "within what is tolerated, or chance"
        worst = found["probes"][found["worst"]]["drop"]
        terminal.say(
            f"\nforgetting  mean drop {found['mean_drop']:+.2f}, worst {worst:+.2f} ({found['worst']}): {words}"
        )
    for line in summary["gate"]["lines"]:
        if line["verdict"] != "pass" and line["of"] == "forgetting":
            terminal.say(f"            {line['verdict']}: {line['check']}: {line['detail']}")
