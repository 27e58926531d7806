"""The commands: each parses, calls one function, prints.

    ift run jobs/quickstart.yaml train.epochs=2
    ift plan jobs/quickstart.yaml --gpus 8 --gpu-memory 80
    ift inspect jobs/quickstart.yaml
    ift evaluate runs/quickstart --against HuggingFaceTB/SmolLM2-135M-Instruct
    ift compare jobs/quickstart.yaml --shots 1,3,5
    ift report runs/quickstart runs/other
    ift chat runs/quickstart
    ift merge runs/adapter merged
    ift sync runs/*
    ift doctor --address http://head:8265
    ift ui
    ift submit jobs/quickstart.yaml --address http://127.0.0.1:8265
    ift jobs list --address http://127.0.0.1:8265

Imports stand inside the functions: `ift --help` loads nothing that trains.
"""

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import ift
from ift.errors import IftError
from ift.redaction import without_secrets

if TYPE_CHECKING:
    from ift.console import Terminal
    from ift.dashboard import Dashboard
    from ift.spec import Spec

_FOLDERS = click.option(
    "--folder",
    "folders",
    multiple=True,
    metavar="DIR",
    help="A folder of your own tasks, beside the library. May be given again.",
)
_SPEC = click.argument("spec", type=click.Path(path_type=Path))
_OVERRIDES = click.argument("overrides", metavar="[KEY=VALUE]…", nargs=-1)
_RUN_FOLDER = click.option(
    "--output", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME]"
)
_JOINED = click.option(
    "--address",
    envvar="RAY_ADDRESS",
    show_envvar=True,
    help="A Ray cluster that this machine is part of: auto, or HOST:6379.  [default: none, a Ray of its own]",
)
_URI = click.option(
    "--uri",
    default="sqlite:///mlflow.db",
    show_default=True,
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    help="Where MLflow is: `tracking.uri` of the spec.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ift.__version__, prog_name="ift")
def cli() -> None:
    """Fine-tune language models on instructions, in full or with adapters, on this machine or a Ray cluster; measure
    what that gained and what it cost; register the result in MLflow.

    Begin with `ift doctor`, then `ift run jobs/quickstart.yaml`.
    """


@cli.command(short_help="Fine-tune, evaluate and register a model.")
@_SPEC
@_OVERRIDES
@_RUN_FOLDER
def run(spec: Path, overrides: Sequence[str], output: Path | None) -> None:
    """Fine-tune, evaluate and register a model as SPEC says.

    KEY=VALUE overrides a value of the spec, such as train.epochs=2. Run again, the same command goes on where
    it stopped.
    """
    from ift import pipeline

    again = ["ift run", str(spec), *overrides, *(["--output", str(output)] if output else [])]
    _at_work(spec, overrides, output, again, pipeline.run)


@cli.command(short_help="See whether prompting would have done.")
@_SPEC
@_OVERRIDES
@click.option(
    "--shots", default="1,3,5", show_default=True, metavar="N,…", help="Solved examples in a prompt."
)
@click.option(
    "--draws", type=click.IntRange(min=1), help="Sets of solved examples to average over.  [default: 1]"
)
@click.option("--lora", is_flag=True, help="Tune once more, with LoRA, and compare that as well.")
@_RUN_FOLDER
def compare(
    spec: Path, overrides: Sequence[str], shots: str, draws: int | None, lora: bool, output: Path | None
) -> None:
    """See whether prompting would have done: the base model behind solved examples beside the tuned model.

    Does the run of SPEC where it is not finished yet; per task it says whether prompting suffices, whether tuning
    pays and from how many calls on, or whether neither works.
    """
    from functools import partial

    from ift import pipeline

    try:
        wanted = sorted({int(n) for n in shots.split(",")} - {0})
    except ValueError:
        raise click.UsageError(
            f"--shots is {shots!r}; wanted whole numbers between commas, such as 1,3,5"
        ) from None
    if not wanted or wanted[0] < 1:
        raise click.UsageError(f"--shots is {shots!r}; wanted numbers of 1 or more (0 is always measured)")
    asked = [f"evaluate.shots={wanted}", *([f"evaluate.draws={draws}"] if draws else [])]
    again = ["ift compare", str(spec), *overrides, f"--shots {shots}", *(["--lora"] if lora else [])]
    again += [f"--output {output}"] if output else []
    _at_work(spec, [*overrides, *asked], output, again, partial(pipeline.compare, lora=lora))


def _loaded(path: Path, overrides: Sequence[str]) -> "Spec":
    """The spec, whose tracking URI means the same from any directory."""
    from ift import cluster
    from ift import spec as specs
    from ift.tracking.client import resolve_uri

    spec = specs.load(path, overrides)
    uri = resolve_uri(spec.tracking.uri, cluster.workplace(spec.cluster.storage))
    return spec.model_copy(update={"tracking": spec.tracking.model_copy(update={"uri": uri})})


def _run_folder(spec: "Spec", output: Path | None) -> Path:
    from ift import cluster

    place = cluster.workplace(spec.cluster.storage)
    return (output.expanduser() if output else place / "runs" / spec.name).absolute()


def _at_work(
    spec: Path,
    overrides: Sequence[str],
    output: Path | None,
    again: Sequence[str],
    work: Callable[..., object],
) -> None:
    """`work(spec, folder, terminal)`, with words for how it ended where that is not well."""
    from ift import cluster, stopping
    from ift.console import own_terminal

    loaded = _loaded(spec, overrides)
    folder = _run_folder(loaded, output)
    command = "submit it again" if cluster.in_job() else " ".join(again)
    try:
        with own_terminal(folder / "run.log") as terminal, stopping.heeded():
            if cluster.in_job() and (seconds := stopping.patience(os.environ)) < stopping.SHORT_S:
                terminal.note(
                    f"Ray kills this job {seconds:g} s after it asks it to stop, which is short for a checkpoint: "
                    f"submit with `ift submit`, or set {stopping.PATIENCE}=600 in the runtime environment's env_vars"
                )
            try:
                work(loaded, folder, terminal)
            except KeyboardInterrupt:
                terminal.say(f"\nstopped; what is done is kept in {folder}\n  to go on: {command}")
                raise
    except KeyboardInterrupt:
        sys.exit(130)
    except IftError:
        raise
    except Exception as error:  # noqa: BLE001  (a fault of ours or of a library: the traceback is for the log)
        _end_unexpected(error, folder / "run.log", f"; to go on: {command}")


def _end_unexpected(error: Exception, log: Path, more: str = "") -> NoReturn:
    """Say a fault of ours or of a library in a line, leave its traceback in `log`, and end."""
    with log.open("a", encoding="utf-8") as file:
        file.write(without_secrets("".join(traceback.format_exception(error))))
    message = (str(error).strip() or "no message").splitlines()[-1]
    click.secho("error: ", fg="red", err=True, nl=False)
    click.echo(without_secrets(f"{type(error).__name__}: {message}"), err=True)
    click.echo(f"  next:   the whole error is in {log}{more}", err=True)
    sys.exit(1)


@cli.command(short_help="Write the stream that a run would train on.")
@_SPEC
@_OVERRIDES
@_RUN_FOLDER
def prepare(spec: Path, overrides: Sequence[str], output: Path | None) -> None:
    """Do the first stage of a run alone: read, word, tokenize and pack; show the mixture that came out.

    `ift run` with the same SPEC goes on from there.
    """
    from ift import pipeline
    from ift.console import own_terminal

    loaded = _loaded(spec, overrides)
    folder = _run_folder(loaded, output)
    with own_terminal(folder / "run.log") as terminal:
        pipeline.prepare(loaded, folder, terminal)


@cli.command(short_help="Show what will fit, and what is chosen.")
@_SPEC
@_OVERRIDES
@click.option("--gpus", type=click.IntRange(min=0), metavar="N", help="Plan for so many GPUs in all.")
@click.option("--gpu-memory", type=click.FloatRange(min=1), metavar="GIB", help="Memory of each GPU.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Plan for so many nodes.")
@click.option("--host-memory", type=click.FloatRange(min=1), metavar="GIB", help="Memory of each node.")
@_RUN_FOLDER
@click.option("--gpu", metavar="NAME", help="The kind of GPU, such as H100, for the time of a step.")
@click.option(
    "--network", type=click.FloatRange(min=0.1), metavar="GBIT", help="Gbit/s of each node.  [default: 100]"
)
@click.option("--probe", is_flag=True, help="Time a step of the chosen kind, with random weights.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def plan(
    spec: Path,
    overrides: Sequence[str],
    gpus: int | None,
    gpu_memory: float | None,
    nodes: int | None,
    host_memory: float | None,
    gpu: str | None,
    network: float | None,
    output: Path | None,
    probe: bool,
    as_json: bool,
) -> None:
    """Show what will fit: memory and time of every way to train the model of SPEC, and the choice that a run takes.

    From the model's config alone. The machine is the cluster of the spec, else this one, unless the options
    describe another.
    """
    from ift import planning

    loaded = _loaded(spec, overrides)
    planning.show(
        loaded,
        _run_folder(loaded, output),
        gpus=gpus,
        gpu_memory=gpu_memory,
        nodes=nodes,
        host_memory=host_memory,
        gpu=gpu,
        network=network,
        as_json=as_json,
        probe=probe,
    )


@cli.command(short_help="Show what a model will see, or saw.")
@click.argument("target", metavar="SPEC_OR_RUN", type=click.Path(path_type=Path))
@_OVERRIDES
@click.option(
    "--count",
    type=click.IntRange(min=0),
    help="How many to show: instructions of each task [3, fewer where there are many tasks], documents of a step [10].",
)
@click.option("--task", help="With a spec: show instructions of this task only.")
@click.option("--step", type=int, metavar="N", help="With a run: show what step N sees.")
@click.option(
    "--example",
    metavar="ID",
    help="With a run: show when an example is seen; the first 4 digits of its id may do.",
)
@click.option("--json", "as_json", is_flag=True, help="With a run: print JSON lines, of all that there is.")
def inspect(
    target: Path,
    overrides: Sequence[str],
    count: int | None,
    task: str | None,
    step: int | None,
    example: str | None,
    as_json: bool,
) -> None:
    """Show what the model will see, the supervised part marked.

    Of a spec: the mixture, and instructions as they will be worded. Of a run's folder: the stream that it has
    written down, what a step sees, or when an example is seen.
    """
    if step is not None and example is not None:
        raise click.UsageError("--step and --example exclude each other")
    if target.is_dir():
        from ift import looking

        if overrides or task:
            raise click.UsageError("KEY=VALUE and --task go with a spec; in a run's folder all is decided")
        if count is not None and step is None:
            raise click.UsageError("of a run's folder, --count goes with --step")
        found = looking.look(target, step=step, example=example, count=count, as_json=as_json)
        sys.exit(0 if found else 1)
    if step is not None or example is not None:
        from ift import looking

        looking.refuse_spec(target, f"--step {step}" if example is None else f"--example {example}")
    if as_json:
        raise click.UsageError("--json goes with a run's folder")
    from ift import inspection

    inspection.show(_loaded(target, overrides), count=count, task=task)


@cli.command(short_help="Measure any model on tasks and probes.")
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option(
    "--tasks", "tasks_", multiple=True, metavar="TASK,…", help="Tasks of the library, or task files."
)
@click.option(
    "--probes", default="default", show_default=True, metavar="NAME,…", help="default, none, or some."
)
@click.option(
    "--against", metavar="RUN_OR_MODEL", help="Ask this model too, and tell what was lost against it."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Test examples a task.  [default: 500; of a run's own items all]",
)
@click.option(
    "--ranking",
    type=click.Choice(["length", "raw", "unconditional"]),
    help="How choices are ranked.  [default: as the run's spec says; length]",
)
@click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    help="What writes answers; vllm on GPUs.  [default: as the run's spec says; transformers]",
)
@click.option(
    "--allow-code", is_flag=True, help="Run code that the model wrote, where a task is graded by it."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="The largest drop of a probe that passes.",
)
@_FOLDERS
@_JOINED
@click.option("--output", type=click.Path(path_type=Path), help="Where it goes.  [default: evaluations/NAME]")
@_URI
def evaluate(
    model: str,
    tasks_: Sequence[str],
    probes: str,
    against: str | None,
    limit: int | None,
    ranking: str | None,
    engine: str | None,
    allow_code: bool,
    max_drop: float,
    folders: Sequence[str],
    address: str | None,
    output: Path | None,
    uri: str,
) -> None:
    """Measure any model on tasks and probes, also one that was never trained here.

    Of a run's folder, the run's own items are asked unless --tasks or --probes name others. With --against, what
    the model lost against the other one.
    """
    from ift import evaluating
    from ift.console import own_terminal

    name = re.sub(r"[^\w.-]+", "-", Path(model).name or model)
    folder = (output or Path("evaluations") / name).absolute()
    with own_terminal(folder / "evaluate.log") as terminal:
        evaluating.evaluate(
            model,
            terminal=terminal,
            output=folder,
            tasks=[name for given in tasks_ for name in given.split(",")],
            folders=folders,
            probes=probes,
            against=against,
            limit=limit,
            ranking=ranking,
            engine=engine,
            allow_code=allow_code,
            max_drop=max_drop,
            address=address,
            uri=_absolute(uri),
        )


@cli.command(short_help="Tell what later runs did to the tasks of earlier ones.")
@click.argument("runs", metavar="RUN RUN…", nargs=-1, required=True)
@_JOINED
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where it goes.  [default: evaluations/transfer]"
)
def transfer(runs: Sequence[str], address: str | None, output: Path | None) -> None:
    """Tell what later runs did to the tasks of earlier ones: the backward transfer of a sequence.

    The runs stand in the order they were trained in, each from the model of the one before
    (model: {source: runs/first/model}). The tasks' frozen items are asked of the last model.
    """
    from ift import evaluating
    from ift.console import own_terminal

    folder = (output or Path("evaluations") / "transfer").absolute()
    with own_terminal(folder / "evaluate.log") as terminal:
        evaluating.transfer(runs, terminal=terminal, output=folder, address=address)


@cli.command(short_help="Write a run's page, or compare runs.")
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the page goes.  [default: RUN/report.html; of several runs comparison.html]",
)
def report(runs: Sequence[Path], output: Path | None) -> None:
    """Write the page of a finished run again, or one page that compares several.

    The page is one file that opens without a network. RUN is a run's folder.
    """
    from ift import reporting

    reporting.report(runs, output)


@cli.command(short_help="Talk to a model.")
@click.argument("model", metavar="RUN_OR_MODEL")
@click.option("--system", default="", metavar="TEXT", help="A system message before each conversation.")
@click.option("--max-new-tokens", default=256, show_default=True, help="The longest answer, in tokens.")
@_URI
def chat(model: str, system: str, max_new_tokens: int, uri: str) -> None:
    """Talk to the model of a run's folder, to a registered version (models:/NAME@ALIAS), or to any model source.

    A model that does not fit one GPU is laid over all that are here, and what they do not hold over the memory.
    """
    from ift import chatting

    chatting.talk(model, uri=_absolute(uri), system=system, max_new_tokens=max_new_tokens)


@cli.command(short_help="Make an ordinary model out of an adapter.")
@click.argument("adapter", metavar="RUN_OR_ADAPTER")
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="How it is written.  [default: as its base]"
)
@_URI
def merge(adapter: str, output: Path, dtype: str | None, uri: str) -> None:
    """Add an adapter to the weights of its base and write an ordinary model folder to OUTPUT.

    RUN_OR_ADAPTER is a run's folder, an adapter's, its id on the hub, or models:/NAME@ALIAS. The model counts once
    its logits were compared with the adapter's.
    """
    from ift import merging

    merging.merge(adapter, output, uri=_absolute(uri), dtype=dtype)


@cli.command(short_help="Send to MLflow what has not arrived.")
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--uri", help="Where MLflow is.  [default: where the run was sent to, without its password]")
def sync(runs: Sequence[Path], uri: str | None) -> None:
    """Send to MLflow what the folders of runs still hold: after an outage, or from another machine.

    Exit status 1 where something is left.
    """
    from rich.console import Console

    from ift import syncing
    from ift.console import Terminal

    uri = _absolute(uri) if uri else None
    sys.exit(0 if syncing.sync(runs, Terminal(Console()), uri=uri) else 1)


@cli.command(short_help="Open MLflow's pages.")
@_URI
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=5000, show_default=True, help="The port to listen on.")
def ui(uri: str, host: str, port: int) -> None:
    """Open MLflow's pages: runs, metrics, and the registry in which a person promotes a model."""
    from ift.tracking import pages

    pages.serve(uri, host=host, port=port)


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


# ── on a cluster ──


_ADDRESS = click.option(
    "--address",
    required=True,
    envvar="RAY_API_SERVER_ADDRESS",
    show_envvar=True,
    metavar="URL",
    help="The cluster's dashboard, such as http://127.0.0.1:8265.",
)
_OPEN = click.option(
    "--open-cluster",
    is_flag=True,
    help="Also a cluster that asks nobody for a token: anyone can run code on it.",
)


@cli.command(short_help="Run a spec on a Ray cluster.")
@_SPEC
@_OVERRIDES
@_ADDRESS
@click.option(
    "--output",
    metavar="DIR",
    help="The run's folder there, which all nodes see.  [default: runs/NAME in cluster.storage if that is a folder, "
    "else in the cluster's IFT_HOME, else in ~/ift]",
)
@click.option(
    "--add",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Send this file or folder along. May be given again.",
)
@click.option(
    "--env", multiple=True, metavar="NAME=VALUE", help="A variable of the job's environment; no secrets."
)
@click.option("--installed", is_flag=True, help="Run the `ift` that the cluster has installed, not this one.")
@click.option("--detach", is_flag=True, help="Do not follow the job's log.")
@_OPEN
def submit(
    spec: Path,
    overrides: Sequence[str],
    address: str,
    output: str | None,
    add: Sequence[Path],
    env: Sequence[str],
    installed: bool,
    detach: bool,
    open_cluster: bool,
) -> None:
    """Run SPEC on a Ray cluster, and follow it here; Ctrl-C asks whether it is to stop or to run on.

    Sent are the spec, its task files and this `ift`; no data and no models. The token is found as Ray finds it:
    RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token. Submitted again, a job that has ended goes on.
    """
    from ift import submitting

    head, terminal = _cluster_at(address, open_cluster)
    variables = submitting.environment(env)
    job = submitting.submit(
        head, spec, overrides, terminal=terminal, output=output, add=add, env=variables, code=not installed
    )
    if detach:
        terminal.say(f"  to follow: ift jobs logs {job} --follow --address {head.address}")
        return
    sys.exit(_followed(head, job, terminal))


def _cluster_at(address: str, open_too: bool) -> "tuple[Dashboard, Terminal]":
    """The head at `address`, which takes the token, and where to speak."""
    from rich.console import Console

    from ift import dashboard
    from ift.console import Terminal, widened

    terminal = Terminal(widened(Console()))
    return dashboard.reach(address, open_too=open_too, note=terminal.note), terminal


def _followed(head: "Dashboard", job: str, terminal: "Terminal") -> int:
    """Follow the job to its end; the exit status. Ctrl-C asks what is meant."""
    from ift import submitting

    while True:
        try:
            return submitting.tell_end(job, submitting.follow(head, job, terminal), terminal)
        except KeyboardInterrupt:
            later = (
                f"to follow it: ift jobs logs {job} --follow --address {head.address}; "
                f"to stop it: ift jobs stop {job} --address {head.address}"
            )
            if not sys.stdin.isatty():
                terminal.say(f"\n{job} runs on; {later}")
                return 0
            terminal.say(f"\n{job} is at work.")
            try:
                answer = click.prompt(
                    "Stop it, with a checkpoint (s), let it run (r), or go on following (f)?",
                    type=click.Choice(["s", "r", "f"]),
                    default="r",
                    show_choices=False,
                )
            except (click.Abort, KeyboardInterrupt):
                answer = "r"
            if answer == "r":
                terminal.say(f"{job} runs on; {later}")
                return 0
            if answer == "s":
                return submitting.tell_end(job, submitting.stop(head, job, terminal), terminal)


@cli.group()
def jobs() -> None:
    """Jobs on a Ray cluster."""


@jobs.command("list", short_help="Show the jobs that were submitted.")
@_ADDRESS
@_OPEN
@_JSON
def jobs_list(address: str, open_cluster: bool, as_json: bool) -> None:
    """Show the jobs that were submitted to a cluster, the newest first."""
    from ift import listing, submitting

    head, terminal = _cluster_at(address, open_cluster)
    rows = submitting.listed(head)
    listing.print_json(rows) if as_json else submitting.show_jobs(rows, terminal)


@jobs.command("logs", short_help="Show a job's log.")
@click.argument("job")
@click.option("--follow", "-f", is_flag=True, help="Until the job ends; with its exit status.")
@_ADDRESS
@_OPEN
def jobs_logs(job: str, follow: bool, address: str, open_cluster: bool) -> None:
    """Show the log of JOB: so far, or until it ends."""
    from ift import submitting

    head, terminal = _cluster_at(address, open_cluster)
    if not follow:
        submitting.show_log(head, job, terminal)
        return
    sys.exit(_followed(head, submitting.known(head, job), terminal))


@jobs.command("stop", short_help="Have a job write a checkpoint and end.")
@click.argument("job")
@_ADDRESS
@_OPEN
def jobs_stop(job: str, address: str, open_cluster: bool) -> None:
    """Have JOB write a checkpoint and end; wait until it has. Submitted again, it goes on."""
    from ift import submitting

    head, terminal = _cluster_at(address, open_cluster)
    outcome = submitting.stop(head, job, terminal)
    terminal.say(f"{job}: {outcome.status}")


@jobs.command("wait", short_help="Wait for a job's end.")
@click.argument("job")
@_ADDRESS
@_OPEN
def jobs_wait(job: str, address: str, open_cluster: bool) -> None:
    """Return when JOB has ended: with status 0 if it succeeded, 130 if it was stopped, else its own."""
    from ift import submitting

    head, terminal = _cluster_at(address, open_cluster)
    sys.exit(submitting.tell_end(job, submitting.wait(head, job), terminal))


@cli.command(short_help="Check this machine, and a cluster.")
@click.argument("spec", type=click.Path(path_type=Path), required=False)
@_OVERRIDES
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    show_envvar=True,
    help="A cluster to look at: http://HEAD:8265, or an address of Ray's such as auto.",
)
@click.option("--local", is_flag=True, help="This machine alone, whatever RAY_ADDRESS says.")
@click.option("--storage", metavar="URL", help="Where checkpoints would go, such as s3://BUCKET/PREFIX.")
@click.option("--tracking", metavar="URI", help="Where MLflow is.")
@_JSON
def doctor(
    spec: Path | None,
    overrides: Sequence[str],
    address: str | None,
    local: bool,
    storage: str | None,
    tracking: str | None,
    as_json: bool,
) -> None:
    """Check this machine, and what a run would need: versions, GPUs, kernels, disks, shared memory.

    With SPEC, or with --storage and --tracking, whether the storage takes files and MLflow lets us in. With an address,
    every node of the cluster: who may submit jobs, versions, clocks, and how fast a sum between nodes is. What does not
    pass says what to do; exit status 1 where anything fails.
    """
    from ift.doctor import report

    if spec:
        loaded = _loaded(spec, overrides)
        storage, tracking = storage or loaded.cluster.storage, tracking or loaded.tracking.uri
        address = address or loaded.cluster.address
    address = None if local else address
    sys.exit(0 if report.show(address=address, storage=storage, tracking=tracking, as_json=as_json) else 1)


@cli.command(short_help="Promote a version of a model, if it passes.")
@click.argument("name")
@click.argument("version", metavar="VERSION")
@click.option("--to", "alias", required=True, metavar="ALIAS", help="The alias it gets, such as champion.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    help="The largest drop of a probe that passes.  [default: as its run had it]",
)
@click.option(
    "--min-gain",
    type=float,
    default=0.0,
    show_default=True,
    help="By which a task must be above the base model.",
)
@click.option(
    "--accept-licence",
    "accepted",
    multiple=True,
    metavar="WORD",
    help="Accept terms that hold this word, such as unstated. May be given again.",
)
@click.option("--ask", is_flag=True, help="Ask the version that holds the alias the new one's items first.")
@click.option(
    "--address",
    envvar="RAY_ADDRESS",
    show_envvar=True,
    help="With --ask: a Ray cluster that this machine is part of.  [default: none, a Ray of its own]",
)
@click.option(
    "--override", metavar="REASON", default="", help="Promote it all the same; the reason is recorded."
)
@_URI
def promote(
    name: str,
    version: str,
    alias: str,
    max_drop: float | None,
    min_gain: float,
    accepted: Sequence[str],
    ask: bool,
    address: str | None,
    override: str,
    uri: str,
) -> None:
    """Promote VERSION (a number, or an alias such as @candidate) of the model NAME, if it passes.

    Compared with its base model and with the version that holds the alias, on the same items; searched for leaks,
    missing files and licences. The decision is printed line by line.
    """
    from contextlib import nullcontext

    from ift import promoting
    from ift.console import Terminal, own_terminal, widened

    # what Ray and the model's libraries have to say goes to a file
    shown = own_terminal(Path("evaluations") / "asked.log") if ask else nullcontext(Terminal(widened(None)))
    with shown as terminal:
        promoting.promote(
            _resolved(uri),
            name,
            version,
            alias,
            terminal=terminal,
            max_drop=max_drop,
            min_gain=min_gain,
            accepted=accepted,
            override=override,
            ask=ask,
            address=address,
        )


@cli.command(short_help="Give an alias back to the version that held it before.")
@click.argument("name")
@click.option("--alias", default="champion", show_default=True, help="The alias that goes back.")
@click.option("--reason", default="", help="Why; it is recorded.")
@_URI
def rollback(name: str, alias: str, reason: str, uri: str) -> None:
    """Give an alias of the model NAME back to the version that held it before."""
    from ift import promoting
    from ift.console import Terminal, widened

    promoting.rollback(_resolved(uri), name, alias, terminal=Terminal(widened(None)), reason=reason)


@cli.command(short_help="Run a registered version once more, and compare.")
@click.argument("name")
@click.argument("version", metavar="VERSION")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME-VERSION-again]"
)
@_URI
def reproduce(name: str, version: str, output: Path | None, uri: str) -> None:
    """Run VERSION of the model NAME once more, from the spec that its run has left in MLflow, and compare.

    The stream must be the same to the byte, and on the same kind of hardware the losses too. Nothing is registered.
    """
    from ift import reproducing
    from ift.console import own_terminal

    folder = (output or Path("runs") / f"{name}-{version.removeprefix('@')}-again").absolute()
    with own_terminal(folder / "run.log") as terminal:
        found = reproducing.reproduce(_resolved(uri), name, version, folder, terminal=terminal)
    sys.exit(0 if found["losses"] is not False else 1)


@cli.command(short_help="Check aliases that people set in MLflow's pages.")
@click.argument("names", metavar="[NAME]…", nargs=-1)
@click.option("--alias", "aliases", multiple=True, help="An alias to watch.  [default: champion]")
@click.option("--enforce", is_flag=True, help="Take an alias back where the version did not pass.")
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Seconds between looks."
)
@click.option("--once", is_flag=True, help="Look once; exit status 1 where something did not pass.")
@click.option("--listen", metavar="HOST:PORT", help="Listen here for MLflow's webhooks too.")
@click.option("--url", help="With --listen: the address by which MLflow reaches it.")
@_URI
def guard(
    names: Sequence[str],
    aliases: Sequence[str],
    enforce: bool,
    every: float,
    once: bool,
    listen: str | None,
    url: str | None,
    uri: str,
) -> None:
    """Check aliases that people set in MLflow's pages, of all models or of those named.

    A version that does not pass gets a tag and a line on its page that say so; with --enforce the alias goes back.
    Webhooks are signed with IFT_GUARD_SECRET, or with a secret made at the start.
    """
    from ift import promoting
    from ift.console import Terminal, widened

    passed = promoting.guard(
        _resolved(uri),
        aliases or ("champion",),
        terminal=Terminal(widened(None)),
        names=names,
        enforce=enforce,
        every=every,
        once=once,
        listen=listen,
        url=url,
    )
    sys.exit(0 if passed else 1)


@cli.group()
def models() -> None:
    """Registered models and their versions."""


@models.command("list", short_help="Show the registered models.")
@_URI
@_JSON
def models_list(uri: str, as_json: bool) -> None:
    """Show the registered models."""
    from ift import versions

    versions.show_models(_resolved(uri), as_json=as_json)


@models.command("show", short_help="Show the versions of a model, or one of them.")
@click.argument("name")
@click.argument("version", required=False)
@_URI
@_JSON
def models_show(name: str, version: str | None, uri: str, as_json: bool) -> None:
    """Show the versions of the model NAME and the moves of its aliases; or VERSION's card."""
    from ift import versions

    versions.show_model(_resolved(uri), name, version, as_json=as_json)


@models.command("diff", short_help="Show what tells two versions apart.")
@click.argument("one")
@click.argument("other")
@_URI
@_JSON
def models_diff(one: str, other: str, uri: str, as_json: bool) -> None:
    """Show what tells two versions apart (NAME@ALIAS or NAME/NUMBER): scores, spec, data."""
    from ift import versions

    versions.diff(_resolved(uri), one, other, as_json=as_json)


@models.command("pull", short_help="Fetch a model.")
@click.argument("version", metavar="NAME@ALIAS")
@click.argument("folder", type=click.Path(path_type=Path))
@_URI
def models_pull(version: str, folder: Path, uri: str) -> None:
    """Fetch the model of a version (NAME@ALIAS or NAME/NUMBER) into FOLDER."""
    from ift import versions

    versions.pull(_resolved(uri), version, folder)


def _absolute(uri: str) -> str:
    """A tracking URI that means the same from any directory."""
    from ift.tracking.client import resolve_uri

    return resolve_uri(uri, Path.cwd())


def _resolved(uri: str) -> str:
    """A tracking URI whose database, if it is a file, is there."""
    from ift.tracking.client import existing_uri

    return existing_uri(uri, Path.cwd())


@cli.group()
def tasks() -> None:
    """Tasks of the library and your own."""


@tasks.command("list", short_help="Show the tasks that there are.")
@click.option("--cluster", help="Only tasks of this family, such as sentiment.")
@click.option("--kind", help="Only tasks of this kind, such as generation.")
@_FOLDERS
@_JSON
def tasks_list(cluster: str | None, kind: str | None, folders: Sequence[str], as_json: bool) -> None:
    """Show the tasks of the library, and those of your own folders."""
    from ift import listing

    rows = listing.task_rows(folders, cluster=cluster, kind=kind)
    listing.print_json(rows) if as_json else listing.show_tasks(rows)


@tasks.command("show", short_help="Show what a task is.")
@click.argument("task")
@_FOLDERS
@_JSON
def tasks_show(task: str, folders: Sequence[str], as_json: bool) -> None:
    """Show what TASK is: where its rows come from, its fields, its choices, its metric.

    TASK is a name, or the path of a task file.
    """
    from ift import listing

    found = listing.find(task, folders)
    listing.print_json(listing.task_detail(found)) if as_json else listing.show_task(found)


@cli.group()
def templates() -> None:
    """How tasks are worded."""


@templates.command("list", short_help="Show the templates of tasks.")
@click.argument("names", metavar="[TASK]…", nargs=-1)
@_FOLDERS
@_JSON
def templates_list(names: Sequence[str], folders: Sequence[str], as_json: bool) -> None:
    """Show the templates of each TASK, or of all, with the beginning of the prompt.

    TASK is a name, or the path of a task file.
    """
    from ift import listing

    rows = listing.template_rows(listing.find_all(names, folders))
    listing.print_json(rows) if as_json else listing.show_templates(rows)


@templates.command("show", short_help="Show templates in full.")
@click.argument("task")
@click.argument("id_", metavar="[ID]", required=False)
@_FOLDERS
@_JSON
def templates_show(task: str, id_: str | None, folders: Sequence[str], as_json: bool) -> None:
    """Show the templates of TASK in full, or the one called ID.

    TASK is a name, or the path of a task file.
    """
    from ift import listing

    found = listing.find(task, folders)
    chosen = {template.id for template in listing.wordings(found, id_)}
    rows = [row for row in listing.template_rows([found]) if row["id"] in chosen]
    listing.print_json(rows) if as_json else listing.show_texts(rows)


@templates.command("render", short_help="Show rows as templates word them.")
@click.argument("task")
@click.option("--id", "id_", metavar="ID", help="Only this template.  [default: all]")
@click.option("--row", metavar="JSON", help="A row of your own.")
@click.option("--rows", type=click.Path(path_type=Path), metavar="FILE", help="A file of rows of your own.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many rows.  [default: 1 under all templates, 3 under one]",
)
@_FOLDERS
@_JSON
def templates_render(
    task: str,
    id_: str | None,
    row: str | None,
    rows: Path | None,
    count: int | None,
    folders: Sequence[str],
    as_json: bool,
) -> None:
    """Show rows of TASK as its templates word them: the first of its source, or your own.

    TASK is a name, or the path of a task file. Rows look as the source has them, before the task's `fields`.
    """
    from ift import listing

    if row is not None and rows is not None:
        raise click.UsageError("--row and --rows exclude each other")
    found = listing.find(task, folders)
    listing.wordings(found, id_)  # a wrong ID is said before anything is fetched
    number = count or (3 if id_ else 1)
    given = row is not None or rows is not None
    chosen = listing.given_rows(row, rows, number) if given else listing.source_rows(found, number)
    made = listing.rendered(found, chosen, id_=id_)
    listing.print_json(made) if as_json else listing.show_rendered(made)


@templates.command("import", short_help="Take over templates of promptsource.")
@click.argument("source", metavar="FILE_OR_DIR", type=click.Path(path_type=Path))
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Where tasks go."
)
def templates_import(source: Path, output: Path) -> None:
    """Write a task file for each templates.yaml of promptsource.

    FILE_OR_DIR is one such file, or a folder that is searched for them. What cannot be taken over is reported.
    """
    from ift import listing

    listing.show_import(listing.import_promptsource(source, output), output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Mistakes that a user can mend are printed without a traceback; exit status 2.

    Of any other error a line is printed, and the traceback is kept in a file that it names; exit status 1.
    """
    try:
        cli.main(
            args=list(arguments) if arguments is not None else None, prog_name="ift", standalone_mode=True
        )
    except IftError as error:
        click.secho("error: ", fg="red", err=True, nl=False)
        click.echo(without_secrets(str(error)), err=True)
        sys.exit(2)
    except Exception as error:  # noqa: BLE001  (the traceback is for the file)
        handle, name = tempfile.mkstemp(prefix="ift-", suffix=".log")
        os.close(handle)
        _end_unexpected(error, Path(name))


if __name__ == "__main__":
    main()
