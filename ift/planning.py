"""`ift plan SPEC`: what will fit, what is chosen, and why; and the same decision for the pipeline.

In:  a spec; machines by flags, the Ray cluster of the spec, or this machine. No weights, no data.
Out: the choice with its memory, what else was considered, and with a probe how long a step takes.

    decide("model", machine=machine, ...).choice     # Choice(method="full", zero_stage=0, ...)

The arithmetic is in ift/models/plan.py, what it counts with in ift/models/shape.py.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ift import cluster, fetching, storage
from ift.console import printable
from ift.errors import IftError, nearest
from ift.models import plan as plans
from ift.models import quantised, remote_code, speed
from ift.models.adapters import Adapter
from ift.models.plan import GIB, Asked, Choice, Considered, Machine, Plan, times
from ift.spec import Spec

SHARE = 0.25  # of tokens that are supervised, where nothing is prepared yet
_FEW = 8  # combinations that are shown of those that fit
_BAR = 30
# Of a GPU that is not here. Bytes a byte of its memory: 1.8 on AWS p4de, 2.1 on GCP a2-ultragpu, 3.2 on AWS p5
# (their vendors' pages); of these only p5 has more than 12 cores a GPU.
_HOST_A_GPU, _CORES_A_GPU = 2, 12


@dataclass(frozen=True)
class Sizes:
    """What a plan needs to know of the data."""

    length: int
    share: float  # of a pack's tokens that are supervised
    packs: int | None  # None: nothing is prepared yet
    words: str


def decide(
    source: str,
    *,
    machine: Machine,
    length: int,
    global_batch: int,
    supervised_share: float,
    asked: Asked,
    adapter: Adapter,
    precision: str,
    attention: str = "auto",
    nvme: bool = False,
    checkpoints: bool = True,
    revision: str | None = None,
    sha256: str | None = None,
    trust_remote_code: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> tuple[Plan, str]:
    """The plan for the model at `source`, and where its shape is from; its choice is None where nothing fits."""
    from ift.models import shape as shapes

    config, words = shapes.config_of(
        source,
        cache=storage.cache_dir(),
        revision=revision,
        sha256=sha256,
        trust_remote_code=trust_remote_code,
        notify=notify,
    )
    quantised.check(config.to_dict(), _short(source))
    shape = shapes.shape_of(config, _short(source))
    if attention == "auto":
        attention = "packed" if machine.gpu_bytes is None else "varlen"
    if shape.encoder_decoder:
        attention = "sdpa"
    written = math.ceil(length * supervised_share)
    ways = {
        method: shapes.way_of(
            config,
            shape,
            adapter=adapter if method == "lora" else None,
            precision=precision,
            attention=attention,
            length=length,
            written=written,
        )
        for method in plans.METHODS
        if asked.method in (None, method)
    }
    found = plans.plan(
        shape,
        ways,
        length=length,
        global_batch=global_batch,
        supervised_share=supervised_share,
        machine=machine,
        asked=asked,
        precision=precision,
        quantize=adapter.quantize,
        nvme=nvme,
        checkpoints=checkpoints,
    )
    return found, words


def asked_of(train: Any) -> Asked:
    """What of a spec's `train` is settled."""

    def settled(value: Any) -> Any:
        return None if value == "auto" else value

    return Asked(
        method=settled(train.method),
        zero_stage=settled(train.zero_stage),
        offload=settled(train.offload),
        activation_checkpointing=settled(train.activation_checkpointing),
        micro_batch=settled(train.micro_batch),
    )


def sizes_of(prepared: Mapping[str, Any] | None, max_length: int, where: str = "") -> Sizes:
    """What the prepare stage wrote down, or what the spec allows where it has not run yet."""
    if not prepared:
        words = f"{SHARE:.0%} of them supervised, as is assumed until `ift prepare` has counted"
        return Sizes(max_length, SHARE, None, words)
    share = prepared["supervised_tokens"] / (prepared["packs"] * prepared["max_length"])
    words = f"{share:.0%} of them supervised: {prepared['packs']:,} packs{where}"
    return Sizes(prepared["max_length"], share, prepared["packs"], words)


# ── machines ──


def this_machine(workers: int | None, global_batch: int) -> Machine:
    """The GPUs and the memory that are here; `workers` is one a GPU, or two, if not given."""
    here = _look()
    return _machine([here], workers, global_batch)


def cluster_machine(workers: int | None, global_batch: int) -> Machine:
    """The nodes of the Ray cluster that this process is connected to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(_look)
    alive = [node for node in ray.nodes() if node["Alive"]]
    looks = []
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpus = 0.01 if node["Resources"].get("GPU") else 0  # without a part of one it would see none
        looks.append(look.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=there).remote())
    nodes = [
        {**seen, "gpus": int(node["Resources"].get("GPU", 0))}
        for seen, node in zip(ray.get(looks), alive, strict=True)
    ]
    if any(node["gpus"] for node in nodes):
        nodes = [node for node in nodes if node["gpus"]]
    return _machine(nodes, workers, global_batch)


def _look() -> dict[str, Any]:
    """What this node has."""
    import psutil
    import torch

    gpus = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
    return {
        "gpus": gpus,
        "gpu_bytes": min(sizes, default=0),
        "gpu": torch.cuda.get_device_name(0) if gpus else "",
        "host_bytes": psutil.virtual_memory().total,
        "cpus": psutil.cpu_count() or 1,
    }


def _machine(nodes: Sequence[Mapping[str, Any]], workers: int | None, global_batch: int) -> Machine:
    """As small as the smallest node, and as full as the fullest: Ray packs workers, and any may land on any node."""
    gpus = sum(node["gpus"] for node in nodes)
    workers = workers or min(gpus or 2, global_batch)
    places = max(node["gpus"] if gpus else node["cpus"] for node in nodes)
    together = workers if len(nodes) == 1 else min(workers, places)
    return Machine(
        workers=workers,
        workers_per_node=together,
        nodes=math.ceil(workers / together),
        gpu_bytes=min(node["gpu_bytes"] for node in nodes) if gpus else None,
        host_bytes_per_node=min(node["host_bytes"] for node in nodes),
        cpus=min(node["cpus"] for node in nodes),
        idle=max(0, gpus - workers),
        gpu=nodes[0].get("gpu", "") if gpus else "",
    )


def described_machine(
    *,
    gpus: int | None,
    gpu_memory: float | None,
    nodes: int | None,
    host_memory: float | None,
    workers: int | None,
    global_batch: int,
    gpu: str | None = None,
    network: float | None = None,
) -> Machine:
    """A machine in the words of the command line; what is not said is as here, but for GPUs that are not here.

    Their nodes are taken to be as large cloud machines are: host memory of twice the GPUs' and 12 cores each.
    Raises `IftError` for half a GPU, and for one of a kind that nobody knows.
    """
    if gpu and speed.peak(gpu) is None:
        raise IftError(
            f"nothing is known of a GPU called {gpu}",
            wanted="one of " + ", ".join(speed.PEAKS),
            hint=nearest(gpu, speed.PEAKS),
        )
    here = _look()
    elsewhere = gpus is not None and gpus > 0 and (gpu_memory is not None or gpus > here["gpus"])
    gpus = here["gpus"] if gpus is None else gpus
    if gpu and not gpus:
        raise IftError(
            f"--gpu {gpu} does not say how many there are, and there is none here", wanted="--gpus N"
        )
    if gpu_memory is None and gpus and not here["gpu_bytes"]:
        raise IftError(
            f"--gpus {gpus} does not say how much memory each has, and there is none here to look at",
            wanted="--gpu-memory GIB, such as 80",
        )
    count = nodes or 1
    gpu_bytes = here["gpu_bytes"] if gpu_memory is None else int(gpu_memory * GIB)
    together = math.ceil(gpus / count)
    host_bytes = _HOST_A_GPU * together * gpu_bytes if elsewhere else here["host_bytes"]
    node = {
        "gpus": together,
        "gpu_bytes": gpu_bytes,
        "host_bytes": host_bytes if host_memory is None else int(host_memory * GIB),
        "cpus": _CORES_A_GPU * together if elsewhere else here["cpus"],
        "gpu": gpu or ("" if elsewhere else here.get("gpu", "")),
    }
    if gpus:
        workers = min(workers or gpus, gpus, global_batch)
    machine = _machine([node] * count, workers, global_batch)
    assumed = elsewhere and host_memory is None
    return replace(machine, assumed=assumed, network=network or machine.network)


def workers_of(asked: str | int | tuple[int, int], *, gpu: bool) -> int | None:
    """How many workers to plan for: of a range the number that needs the most memory of a node or of a GPU."""
    if isinstance(asked, tuple):
        return asked[0] if gpu else asked[1]
    return None if asked == "auto" else int(asked)


# ── `ift plan` ──


def show(
    spec: Spec,
    folder: Path,
    *,
    gpus: int | None = None,
    gpu_memory: float | None = None,
    nodes: int | None = None,
    host_memory: float | None = None,
    gpu: str | None = None,
    network: float | None = None,
    as_json: bool = False,
    probe: bool = False,
    console: Console | None = None,
) -> None:
    """Print the plan for a run of `spec` in `folder`. Raises `IftError` where nothing fits, after the table."""
    from ift.models import attention

    console = console or Console()
    train = spec.train
    prepared = storage.read_json(folder / "prepare" / "manifest.json")
    sizes = sizes_of(prepared, spec.data.max_length, f" in {folder}")

    def note(text: str) -> None:
        if not as_json:
            console.print(f"[dim]{escape(text)}[/]", highlight=False)

    machine = _asked_machine(spec, gpus, gpu_memory, nodes, host_memory, gpu, network, note)
    if machine.gpu_bytes is None:
        attention.check(train.attention, train.liger)
    precision = train.precision
    if precision == "auto":
        precision = "fp32" if machine.gpu_bytes is None else "bf16"
    adapter = Adapter(**train.adapter.model_dump())
    model = fetching.shape_of(spec.model, uri=spec.tracking.uri)
    found, source = decide(
        **model.place,
        machine=machine,
        length=sizes.length,
        global_batch=train.global_batch,
        supervised_share=sizes.share,
        asked=asked_of(train),
        adapter=adapter,
        precision=precision,
        attention=train.attention,
        nvme=train.nvme is not None,
        checkpoints=train.epochs > 1 or bool(train.checkpoint_steps or train.checkpoint_minutes),
        notify=note,
    )
    rate = ""
    if found.choice:
        rate = f", learning rate {train.rate(found.choice.method):g}"
        if said_of_rate := train.rate_note(found.choice.method):
            found = replace(found, notes=(*found.notes, said_of_rate))
    timing = None
    if probe and found.choice:
        timing = probe_step(model, found, adapter, packs=sizes.packs)
    if as_json:
        said = {**found.as_json(), "source": source, "predicted": predicted(found), "probe": timing}
        console.print_json(data=said, indent=2)
    else:
        for part in (
            _head(found, source, sizes, rate),
            _chosen(found),
            _table(found),
            _rejected(found),
            _time(timing),
        ):
            for line in part:
                console.print(line, highlight=False)
    if found.choice is None:
        raise plans.refusal(found)


def _asked_machine(
    spec: Spec,
    gpus: int | None,
    gpu_memory: float | None,
    nodes: int | None,
    host_memory: float | None,
    gpu: str | None,
    network: float | None,
    note: Callable[[str], None],
) -> Machine:
    batch, asked = spec.train.global_batch, spec.cluster.workers
    if any(value is not None for value in (gpus, gpu_memory, nodes, host_memory, gpu, network)):
        return described_machine(
            gpus=gpus,
            gpu_memory=gpu_memory,
            nodes=nodes,
            host_memory=host_memory,
            workers=workers_of(asked, gpu=bool(gpus)),
            global_batch=batch,
            gpu=gpu,
            network=network,
        )
    if address := cluster.asked_address(spec.cluster.address):
        with cluster.connect(address, workers=None) as resources:
            if not resources.gpus and cluster.grows():
                note(
                    "no node of the cluster has a GPU now, and this plan is for CPUs; --gpus and --gpu-memory plan for "
                    "those that its autoscaler would add"
                )
            return cluster_machine(workers_of(asked, gpu=bool(resources.gpus)), batch)
    return this_machine(workers_of(asked, gpu=bool(_look()["gpus"])), batch)


# ── what people read ──


def _head(found: Plan, source: str, sizes: Sizes, rate: str) -> list[Any]:
    shape, machine = found.shape, found.machine
    experts = f", {shape.experts / shape.parameters:.0%} of them in experts" if shape.experts else ""
    what = f"{plans.count_in_words(shape.parameters)} parameters{experts}, {shape.layers} layers of width "
    what += f"{shape.hidden:,}, vocabulary of {shape.vocabulary:,}"
    if machine.gpu_bytes is None:
        workers = f"{times(machine.workers, 'worker')} on CPU"
    else:
        workers = f"{times(machine.workers, 'GPU')} of {machine.gpu_bytes / GIB:,.1f} GiB"
        if machine.idle and machine.workers == found.global_batch:
            workers += f" ({machine.idle} more are idle: a step's {times(found.global_batch, 'pack')} are one a worker)"
        elif machine.idle:
            workers += f" ({machine.idle} more are idle)"
    nodes = f"{machine.nodes} nodes, each with" if machine.nodes > 1 else "a node with"
    rows = [
        ("model", f"{shape.name}: {what}"),
        ("shape", source),
        (
            "machine",
            f"{workers}; {nodes} {machine.host_bytes_per_node / GIB:,.1f} GiB and {times(machine.cpus, 'core')}"
            + ", as is assumed without --host-memory GIB" * machine.assumed,
        ),
        ("data", f"packs of {sizes.length:,} tokens, {sizes.words}"),
        (
            "step",
            f"{times(found.global_batch, 'pack')} over {times(machine.workers, 'worker')}, in {found.precision}{rate}",
        ),
    ]
    grid = _grid()
    for key, value in rows:
        grid.add_row(key, escape(printable(value)))
    return [grid, *(f"[yellow]![/] {escape(note)}" for note in found.notes), ""]


def _grid(*, numbers: bool = False) -> Table:
    """Two columns without lines: the second wraps."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=None if numbers else "dim", justify="right" if numbers else "left", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _chosen(found: Plan) -> list[Any]:
    if found.choice is None:
        return ["[bold red]nothing fits[/]", ""]
    loud = found.asked.method is None and found.choice.method == "lora"
    colour = "yellow" if loud else "green"
    choice = _grid()
    choice.add_row("choice", f"[bold {colour}]{escape(str(found.choice))}[/]")
    choice.add_row("", f"[yellow]{escape(found.why)}[/]" if loud else escape(found.why))
    memory, machine = found.of(found.choice).memory, found.machine
    assert memory is not None
    whose = "a GPU" if machine.gpu_bytes else "a worker's process"
    bars = Table.grid(padding=(0, 2, 0, 0))
    for style, justify in (("dim", "left"), ("", "right"), ("", "left")):
        bars.add_column(style=style, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    bars.add_row("memory", "GiB", f"[dim]of {whose}, {memory.moment}[/]")
    most = max(memory.worker.values())
    for row, size in memory.worker.items():
        if size:
            bars.add_row(row, f"{size / GIB:.2f}", f"[cyan]{'█' * round(_BAR * size / most) or '▏'}[/]")
    of = f"[dim]of {machine.gpu_bytes / GIB:,.1f}[/]" if machine.gpu_bytes else ""
    bars.add_row("[bold]in all[/]", f"[bold]{memory.worker_bytes / GIB:.2f}[/]", of)
    node = _grid()
    rest = f"{machine.host_bytes_taken / GIB:.1f} of Ray and the run's own"
    parts = (
        memory.node_moment
        if machine.gpu_bytes
        else f"{machine.workers_per_node} × {memory.worker_bytes / GIB:.2f}"
    )
    if machine.gpu_bytes:
        node.add_row("a step", _predicted_in_words(found))
    node.add_row(
        "a node",
        f"{memory.node / GIB:,.1f} of {machine.host_bytes_per_node / GIB:,.1f} GiB: {parts}, and {rest}",
    )
    return [choice, "", bars, node, ""]


def predicted(found: Plan) -> dict[str, Any] | None:
    """The time of a step of the choice, as programs read it; None where nothing fits."""
    if found.choice is None:
        return None
    step = found.of(found.choice).step
    assert step is not None
    tokens = found.global_batch * found.length
    return {
        "seconds_a_step": step.seconds,
        "computing": step.computing,
        "waiting": step.waiting,
        "updating": step.updating,
        "offloading": step.offloading,
        "tokens_a_second_and_worker": tokens / step.seconds / found.machine.workers,
        "mfu": plans.utilization_of(found, found.choice),
    }


def _predicted_in_words(found: Plan) -> str:
    said, machine = predicted(found), found.machine
    assert said is not None
    parts = [f"{said['computing']:.2f} computing", f"{said['waiting']:.2f} waiting for collectives"]
    parts += [
        f"{said['updating'] + said['offloading']:.2f} the optimizer"
        + ", offloaded" * bool(said["offloading"])
    ]
    used = f", MFU {said['mfu']:.0%}" if said["mfu"] is not None else ""
    on = machine.gpu or "an A100 (or say --gpu NAME)"
    if machine.nodes > 1:
        on += f", {machine.network:,.0f} Gbit/s a node"
    speed_a_gpu = f"{said['tokens_a_second_and_worker']:,.0f} tokens/s a GPU{used}"
    return f"about {said['seconds_a_step']:.2f} s ({'; '.join(parts)}), {speed_a_gpu} [dim]on {escape(on)}[/]"


def _table(found: Plan) -> list[Any]:
    """Of each kind that fits the fastest; of adapters, where all weights can be trained, the best one alone."""
    kinds: dict[Choice, Considered] = {}
    for considered in found.considered:
        if considered.fits:
            kinds.setdefault(replace(considered.choice, micro_batch=0), considered)
    if found.choice is None:
        return []
    ours = [c for c in kinds.values() if c.choice.method == found.choice.method]
    others = [c for c in kinds.values() if c.choice.method != found.choice.method]
    fastest = found.of(found.choice).seconds or 1.0
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("method", "ZeRO", "offload", "checkpointing", "micro-batch", "GiB", "time"):
        left = name in ("method", "offload", "checkpointing")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for considered in [*ours[:_FEW], *others[:1]]:
        choice = considered.choice
        table.add_row(
            {"full": "full", "lora": "LoRA"}[choice.method],
            str(choice.zero_stage),
            choice.offload if choice.offload != "none" else "–",
            "activations" if choice.activation_checkpointing else "–",
            str(choice.micro_batch),
            f"{plans.size_of(considered) / GIB:,.1f}",
            f"× {(considered.seconds or 0.0) / fastest:.2f}",
            style="bold" if choice == found.choice else None,
        )
    fits = sum(c.fits for c in found.considered)
    more = len(ours) - _FEW
    rest = f", {times(more, 'slower kind')} left out" if more > 0 else ""
    head = f"{fits:,} of {len(found.considered):,} combinations fit; the best of each kind{rest}"
    return [f"[dim]{head} (time as docs/scaling.md predicts it)[/]", table, ""]


def _rejected(found: Plan) -> list[Any]:
    """Reasons, each with all that it holds for: what cannot be, and how much too large the smallest of a kind is."""
    impossible: dict[str, list[Considered]] = defaultdict(list)
    too_large: dict[tuple[str, int, str], list[Considered]] = defaultdict(list)
    for considered in found.considered:
        choice = considered.choice
        if considered.fits or (
            found.choice and plans.METHODS.index(choice.method) > plans.METHODS.index(found.choice.method)
        ):
            continue  # of adapters nothing more is said where all weights can be trained
        if considered.memory is None:
            impossible[considered.reason].append(considered)
        else:
            too_large[choice.method, choice.zero_stage, choice.offload].append(considered)
    if not impossible and not too_large:
        return []
    grid = _grid(numbers=True)
    for (method, stage, offload), rows in too_large.items():
        least = min(rows, key=plans.size_of)
        kind = plans.kind_in_words(method, stage, offload)
        which = "" if len(rows) == 1 else "the least "
        grid.add_row(f"{len(rows)} ×", escape(f"{kind}: {which}{least.reason}"))
    for reason, rows in impossible.items():
        grid.add_row(f"{len(rows)} ×", escape(reason))
    return [f"[dim]rejected ({plans.MARGIN:.0%} of memory is to stay free)[/]", grid, ""]


# ── the probe ──


def probe_step(model: Any, found: Plan, adapter: Adapter, *, packs: int | None) -> dict[str, Any]:
    """Time forward and backward of one micro-batch of the chosen kind with random weights, few layers deep.

    The time of a layer and of the rest follows from two depths. Collectives, offloading and the optimizer's step are
    not in it. Raises `IftError` where GPUs are planned for and none is here.
    """
    from ift.models import shape as shapes

    assert found.choice is not None
    if found.machine.gpu_bytes is not None and not _look()["gpus"]:
        raise IftError(
            "--probe has no GPU here to time a step on",
            wanted="a machine with a GPU of the planned kind",
            hint="plan without --probe",
        )
    config, _ = shapes.config_of(**model.place, cache=storage.cache_dir())
    full = config.get_text_config().num_hidden_layers
    few, more = (1, 3) if full >= 3 else (1, max(2, full))
    times = [_timed(shapes.shallow(config, layers), found, adapter) for layers in (few, more)]
    layer = max(0.0, (times[1] - times[0]) / (more - few))
    pass_seconds = times[0] + layer * (full - few)
    machine, choice = found.machine, found.choice
    rounds = math.ceil(math.ceil(found.global_batch / machine.workers) / choice.micro_batch)
    seconds = rounds * pass_seconds
    counted = packs or 1000
    return {
        "seconds_a_step": seconds,
        "tokens_a_second": found.global_batch * found.length / seconds,
        "packs": counted,
        "packs_are_prepared": packs is not None,
        "hours": counted / found.global_batch * seconds / 3600,
        "layers_timed": [few, more],
        "pass_seconds": times,
    }


def _timed(config: Any, found: Plan, adapter: Adapter, repeats: int = 3) -> float:
    """Seconds of a forward and a backward pass of a micro-batch, the fastest of a few."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from ift.data.stream import Pack
    from ift.models import adapters, attention
    from ift.train.loss import collate, collate_pairs, loss_sum

    choice = found.choice
    assert choice is not None
    device = torch.device("cuda" if found.machine.gpu_bytes and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, found.machine.cpus // found.machine.workers_per_node))
    dtype = torch.bfloat16 if found.precision == "bf16" and device.type == "cuda" else torch.float32
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with device:
        model = kind.from_config(config, dtype=dtype, **remote_code.of_config(config))
    if choice.activation_checkpointing:
        model.activation_checkpointing_enable()
    if choice.method == "lora":
        adapters.attach(model, adapter, seed=0)
    model.to(device).train()
    names = attention.candidates(model, device=device, dtype=dtype)
    attention.use(model, names[0])
    length = found.length
    written = min(max(1, math.ceil(found.supervised_share * length)), length - 1)
    tokens = [i % config.get_text_config().vocab_size for i in range(length)]
    supervised = [i >= length - written for i in range(length)]
    pack = Pack(tokens, supervised, [length], ["probe"], ["probe"], ["probe"])
    batch = (collate_pairs if config.is_encoder_decoder else collate)([pack] * choice.micro_batch, device)
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        total, _ = loss_sum(model, batch)
        torch.autograd.backward(total)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        model.zero_grad()
    return min(seconds[1:])


def _time(timing: Mapping[str, Any] | None) -> list[Any]:
    if timing is None:
        return []
    seconds = 3600 * timing["hours"]
    unit, words = (3600, "hours") if seconds >= 3600 else (60, "minutes") if seconds >= 60 else (1, "seconds")
    long = f"{seconds / unit:.1f} {words}"
    packs = f"{timing['packs']:,} packs"
    whole = f"{long} for the {packs} of the run" if timing["packs_are_prepared"] else f"{long} for {packs}"
    few, more = timing["layers_timed"]
    grid = _grid()
    step = f"{timing['seconds_a_step']:.2f} s a step, {timing['tokens_a_second']:,.0f} tokens/s, {whole}"
    grid.add_row("time", step)
    how = f"a micro-batch through {few} and {more} layers of random weights on this machine, the rest by proportion; "
    grid.add_row("", f"[dim]{how}without collectives, offloading and the optimizer's step[/]")
    return [grid]


def _short(source: str) -> str:
    """A model's name for people: `package:p==1/m/SmolLM2.gguf` -> `SmolLM2`."""
    name = source.rstrip("/").rpartition("/")[2]
    return name.removesuffix(".gguf") or source
