"""What will fit: memory and time of every way to train a model on a machine, and the choice among them. Arithmetic.

In:  the shape of a model and the ways to train it (shape.py), tokens, a `Machine`, what the user has settled.
Out: a `Plan`: every combination with its memory, and why it was rejected; the choice; and what to take after it where
     memory was short all the same.

    found = plan(shape, {"full": way}, length=512, global_batch=2, supervised_share=0.2, machine=machine)
    found.choice                        # Choice(method="full", zero_stage=0, offload="none", micro_batch=1, ...)
    next_choice(found, after=found.choice)

A worker holds, in bytes a parameter (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 3), with N workers:

                               weights     gradients      Adam and its fp32 weights
    fp32, stage 0              4           4              8
    mixed, as they count       2           2              12
    mixed, stage 1 here        2           4              12/N      gradients are summed in fp32
    mixed, stage 2             2           4/N            12/N
    mixed, stage 3             2/N         4/N            12/N      and 2 for the weights that are gathered at the time

and besides what the forward pass keeps for the backward one (shape.py; Korthikanti et al. 2022, arXiv 2205.05198), the
logits of the supervised tokens alone, and what DeepSpeed 0.19 copies, as its source has it: the buckets of gradients
that it reduces, a flat copy of the partition that it steps on, what offloading pins. Where all is in a host's memory
these are added up: the allocator keeps within a step what was freed in it. Numbers that were measured say so below.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ift.errors import IftError
from ift.models import scaling, speed
from ift.models.scaling import BUCKET, LIVE, PREFETCH, WHOLE_BUCKET
from ift.models.shape import BYTES, Shape, Way

GIB = 2**30
MIB = 2**20
ROWS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "checkpoint", "process")
METHODS = ("full", "lora")
OFFLOADS = ("none", "optimizer", "parameters")

MARGIN = 0.10  # of memory that a plan leaves free: fragments, packs with more supervised tokens than most

_SUB_GROUP = 1_000_000_000  # stage 3 steps on so many at a time

# Measured (benchmarks/plan.py): what is there before any weight is.
PROCESS = 620 * MIB  # a worker under Ray: torch, transformers, DeepSpeed, Ray Data
GROWN = 48 * MIB  # by the end of the first step: kernels' workspaces, threads, the graph
HOST = 13 * GIB // 4  # a node's own: the run itself, Ray's two dozen processes, the tasks that read packs
# What glibc's heap holds beside what is alive, as a share of the activations that are kept without checkpointing: what
# was freed between tensors that stay is often too small for the next one. Adapters leave many small ones that stay.
_HOLES = {"full": 0.25, "lora": 1.15}
# Not measured: no GPU was at hand.
_CONTEXT = 1 * GIB  # of CUDA and NCCL on a GPU
_GPU_PROCESS = 3 * GIB  # of host memory, for a worker with a GPU


@dataclass(frozen=True)
class Machine:
    """The workers, and what they have."""

    workers: int
    workers_per_node: int
    nodes: int
    gpu_bytes: int | None  # of each worker's GPU; None: workers run on CPU
    host_bytes_per_node: int
    cpus: int  # of a node
    process_bytes: int = PROCESS  # a worker on CPU before it has loaded anything
    host_bytes_taken: int = HOST  # of each node, by what is no worker
    assumed: bool = False  # nobody said what the nodes have besides their GPUs
    idle: int = 0  # GPUs without a worker
    gpu: str = ""  # its driver's name, or a part of it; "" is taken for an A100
    network: float = scaling.NETWORK  # Gbit/s of a node

    @property
    def rates(self) -> scaling.Rates:
        """What a worker's hardware does in a second."""
        if self.gpu_bytes is not None:
            return scaling.gpu_rates(self.gpu, network=self.network)
        return scaling.cpu_rates(max(1, self.cpus // self.workers_per_node))


@dataclass(frozen=True)
class Asked:
    """What the user has settled; None is left to the plan."""

    method: str | None = None  # full | lora
    zero_stage: int | None = None
    offload: str | None = None  # none | optimizer | parameters
    activation_checkpointing: bool | None = None
    micro_batch: int | None = None


@dataclass(frozen=True)
class Choice:
    """One way to train."""

    method: str  # full | lora
    zero_stage: int
    offload: str  # none | optimizer | parameters
    activation_checkpointing: bool
    micro_batch: int

    def __str__(self) -> str:
        words = [kind_in_words(self.method, self.zero_stage, self.offload)]
        words += ["activation checkpointing"] * self.activation_checkpointing
        return ", ".join([*words, f"micro-batch {self.micro_batch}"])


@dataclass(frozen=True)
class Memory:
    """Bytes where they are most: of a worker's GPU, or of its process where there is none; and of a whole node."""

    worker: Mapping[str, int]  # by ROWS
    moment: str  # when that is
    node: int  # host memory of all workers of a node and what is there besides
    node_moment: str

    @property
    def worker_bytes(self) -> int:
        return sum(self.worker.values())


@dataclass(frozen=True)
class Considered:
    """A combination, what it would take, and why it was rejected."""

    choice: Choice
    memory: Memory | None  # None where the combination cannot be
    step: scaling.Step | None  # its time, as predicted
    reason: str = ""  # "" where it fits

    @property
    def fits(self) -> bool:
        return not self.reason

    @property
    def seconds(self) -> float | None:
        """Of a step."""
        return self.step.seconds if self.step else None


@dataclass(frozen=True)
class Plan:
    """All that was considered, and what came of it."""

    shape: Shape
    machine: Machine
    length: int
    global_batch: int
    supervised_share: float
    precision: str
    quantize: str
    asked: Asked
    considered: tuple[Considered, ...]
    choice: Choice | None
    why: str
    notes: tuple[str, ...] = ()

    def of(self, choice: Choice) -> Considered:
        """What was found about this combination."""
        return next(c for c in self.considered if c.choice == choice)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plan(
    shape: Shape,
    ways: Mapping[str, Way],
    *,
    length: int,
    global_batch: int,
    supervised_share: float,
    machine: Machine,
    asked: Asked = Asked(),
    precision: str = "fp32",
    quantize: str = "none",
    nvme: bool = False,
    checkpoints: bool = True,
) -> Plan:
    """Everything that could be done with the `ways` of training at hand, and the fastest that fits.

    Without a method in `asked`, all weights are trained where any combination of that fits, else an adapter.
    """
    job = _Job(
        shape, ways, length, global_batch, supervised_share, machine, precision, quantize, nvme, checkpoints
    )
    considered = [_consider(job, choice, asked) for choice in _combinations(job, asked)]
    considered.sort(key=lambda c: (not c.fits, METHODS.index(c.choice.method), c.seconds or 0.0, size_of(c)))
    best = next((c for c in considered if c.fits), None)
    notes = [] if all(way.kept.counted for way in ways.values()) else [_BY_FORMULA]
    found = Plan(
        shape=shape,
        machine=machine,
        length=length,
        global_batch=global_batch,
        supervised_share=supervised_share,
        precision=precision,
        quantize=quantize,
        asked=asked,
        considered=tuple(considered),
        choice=best.choice if best else None,
        why="",
        notes=tuple(notes),
    )
    return replace(found, why=_why(found))


def next_choice(found: Plan, *, after: Choice) -> Choice | None:
    """What to take where `after` ran out of memory: the fastest that needs at least a twentieth less; None if none is.

    An adapter comes after all that trains the weights, and only where the user has left the method open.
    """
    sizes = {c.choice: size_of(c) for c in found.considered}
    limit = 0.95 * sizes.get(after, math.inf)  # not among them: workers have come or gone since it was chosen
    methods = METHODS[METHODS.index(after.method) :]
    left = (
        c.choice
        for c in found.considered
        if c.fits and c.choice.method in methods and sizes[c.choice] <= limit and c.choice != after
    )
    return next(left, None)


def refusal(found: Plan) -> IftError:
    """Why nothing fits, in numbers, and what to do about it."""
    assert found.choice is None, found.choice
    possible = [c for c in found.considered if c.memory]
    if not possible:
        reasons = list(dict.fromkeys(c.reason for c in found.considered))
        settled = [f.name for f in fields(found.asked) if getattr(found.asked, f.name) is not None]
        return IftError(
            "no way to train is possible as the spec asks: " + "; ".join(reasons[:3]),
            hint=", ".join(f"train.{name}=auto" for name in settled if name != "method") or None,
        )
    best = min(possible, key=lambda c: (_excess(found.machine, c), size_of(c)))
    method = {"full": "all weights of", "lora": "an adapter on"}[best.choice.method]
    return IftError(
        f"training {method} {found.shape.name} ({count_in_words(found.shape.parameters)} parameters) does not fit on "
        f"{_machine_in_words(found.machine)}, of which {MARGIN:.0%} stays free: "
        f"the least, {best.choice}, {best.reason}",
        wanted="memory for one of the combinations that `ift plan` lists",
        hint=_next_moves(found, best),
    )


# ── what is possible ──

_BY_FORMULA = (
    "what a forward pass keeps is estimated, not counted on this model: its layers do not run without weights"
)


@dataclass(frozen=True)
class _Job:
    shape: Shape
    ways: Mapping[str, Way]
    length: int
    global_batch: int
    supervised_share: float
    machine: Machine
    precision: str
    quantize: str
    nvme: bool
    checkpoints: bool

    @property
    def rows(self) -> int:
        """Packs of a worker in a step, at most."""
        return math.ceil(self.global_batch / self.machine.workers)

    @property
    def gpu(self) -> bool:
        return self.machine.gpu_bytes is not None


def _combinations(job: _Job, asked: Asked) -> list[Choice]:
    most = job.rows
    sizes = [2**i for i in range(most.bit_length()) if 2**i <= most]
    if asked.micro_batch is not None:
        sizes = [asked.micro_batch]
    methods = [m for m in METHODS if m in job.ways and asked.method in (None, m)]
    stages = [s for s in range(4) if asked.zero_stage in (None, s)]
    offloads = [o for o in OFFLOADS if asked.offload in (None, o)]
    checkpointing = [c for c in (False, True) if asked.activation_checkpointing in (None, c)]
    return [
        Choice(method, stage, offload, again, size)
        for method in methods
        for stage in stages
        for offload in offloads
        for again in checkpointing
        for size in sizes
    ]


def _consider(job: _Job, choice: Choice, asked: Asked) -> Considered:
    if reason := _impossible(job, choice, asked):
        return Considered(choice, None, None, reason)
    memory, machine = memory_of(job, choice), job.machine
    found = Considered(choice, memory, step_of(job, choice))
    if machine.gpu_bytes is not None and memory.worker_bytes > _usable(machine.gpu_bytes):
        reason = f"{_needs(memory.worker_bytes, machine.gpu_bytes, 'a GPU')}; {_most(memory.worker)}"
    elif memory.node > _usable(machine.host_bytes_per_node):
        reason = _needs(memory.node, machine.host_bytes_per_node, "a node") + "; "
        if job.gpu:
            reason += memory.node_moment
        else:
            reason += f"{times(machine.workers_per_node, 'worker')} with {_gib(memory.worker_bytes)}, "
            reason += _most(memory.worker)
    else:
        reason = ""
    return replace(found, reason=reason)


def _impossible(job: _Job, choice: Choice, asked: Asked) -> str:
    """Why a combination cannot be, or brings nothing; "" where it may do."""
    stage, offload, alone = choice.zero_stage, choice.offload, job.machine.workers == 1
    if job.precision == "bf16" and stage == 0:
        return "DeepSpeed has no bf16 at stage 0 that sums gradients in fp32"
    if offload != "none" and not job.gpu:
        return "without a GPU there is nothing to offload from"
    if offload == "optimizer" and stage == 0:
        return "offloading the optimizer needs ZeRO stage 1 or more"
    if offload == "optimizer" and stage < 3 and job.nvme:
        return "DeepSpeed offloads to a disk under ZeRO-3 alone"
    if offload == "optimizer" and stage == 1 and job.precision == "bf16":
        return "with the optimizer offloaded, stage 1 sums all gradients in fp32 on the GPU, and stage 2 its own part"
    if offload == "parameters" and stage < 3:
        return "offloading the weights needs ZeRO stage 3"
    if choice.method == "lora" and job.quantize == "4bit":
        if not job.gpu:
            return "weights of 4 bits need a GPU"
        if stage == 3:
            return "ZeRO-3 cannot divide weights of 4 bits among the workers"
    least = 1 if job.precision == "bf16" else 0
    if offload == "optimizer":  # the first stage that can do that at all, as above
        least = 3 if job.nvme else 2 if job.precision == "bf16" else 1
    if alone and offload != "parameters" and stage > least and asked.zero_stage is None:
        return "one worker has nobody to divide with"
    return ""


# ── memory ──


def memory_of(job: _Job, choice: Choice) -> Memory:
    """What a combination takes where it takes most."""
    moments = _on_gpu(job, choice) if job.gpu else _on_cpu(job, choice)
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    rows = {row: moments[moment].get(row, 0) for row in ROWS}
    machine = job.machine
    if not job.gpu:
        node = machine.workers_per_node * sum(rows.values()) + machine.host_bytes_taken
        return Memory(rows, moment, node, moment)
    host = _on_host(job, choice)
    host_moment = max(host, key=lambda name: host[name])
    return Memory(rows, moment, host[host_moment] + machine.host_bytes_taken, host_moment)


def _on_cpu(job: _Job, choice: Choice) -> dict[str, dict[str, int]]:
    """A worker's process in fp32 by moment. Nothing that a pass has freed is given back before its end."""
    shape, way, workers = job.shape, job.ways[choice.method], job.machine.workers
    trained, stage = way.trained, choice.zero_stage
    all_weights = shape.parameters + (trained if choice.method == "lora" else 0)
    part = _part(trained, workers)
    reduced = min(trained, BUCKET["cpu"] + way.largest)
    weights, fetched = 4 * all_weights, 0
    if stage == 3:
        weights = 4 * (_part(all_weights, workers) + min(all_weights, LIVE))
        fetched = 4 * min(all_weights, PREFETCH)
    optimizer = 8 * trained if stage == 0 else 12 * part
    # one alone reduces nothing; measured: as much of what it frees stays with it (trainer.KEEP_MEMORY)
    copies = 4 * (min(trained, WHOLE_BUCKET + way.largest) if stage == 0 else reduced)
    activations, logits = _passes(job, choice)
    holes = activations if choice.method == "full" else choice.micro_batch * shape.layers * way.kept.layer
    activations += math.ceil(_HOLES[choice.method] * holes)
    gradients = {
        0: 4 * trained,
        1: 4 * trained,
        2: 4 * part + max(0, 4 * reduced - activations),  # measured: a bucket lies where activations were
        3: 4 * part + 4 * reduced,
    }[stage]
    steady = {
        "weights": weights,
        "optimizer": optimizer,
        "checkpoint": _checkpoint(job, part),
        "process": job.machine.process_bytes + GROWN,
    }
    stepping = {0: 0, 1: 4 * part, 2: 4 * part, 3: 4 * min(part, _SUB_GROUP)}[stage]
    stepping += 8 * way.largest if stage else 0  # norms are taken in fp64, one tensor at a time
    return {
        "in the backward pass": {
            **steady,
            "gradients": gradients,
            "activations": activations,
            "logits": logits,
            "buffers": copies + fetched + 4 * way.largest,
        },
        "in the optimizer's step": {
            **steady,
            "gradients": gradients,
            "buffers": stepping,
        },
    }


def _on_gpu(job: _Job, choice: Choice) -> dict[str, dict[str, int]]:
    """A worker's GPU by moment."""
    shape, way, workers = job.shape, job.ways[choice.method], job.machine.workers
    trained, stage, wide = way.trained, choice.zero_stage, BYTES[job.precision]
    lora, part = choice.method == "lora", _part(way.trained, workers)
    if lora:
        frozen = shape.parameters
        weights = wide * (frozen + trained)
        if (
            job.quantize == "4bit"
        ):  # NF4, and its scales quantised too: 4.13 bits (arXiv 2305.14314, section 3)
            weights = wide * (frozen - shape.linear + trained) + math.ceil(shape.linear * 4.127 / 8)
    else:
        frozen, weights = 0, wide * trained
    if stage == 3:
        everything = frozen + trained
        gathered = wide * (min(everything, LIVE) + min(everything, PREFETCH))
        weights = gathered + (0 if choice.offload == "parameters" else wide * _part(everything, workers))
    bucket = BUCKET["gpu"]
    staged = wide * min(trained, bucket) + wide * way.largest  # what is on its way to be reduced
    gradients, optimizer, copies = 0, 0, 0
    norms, stepping = 0, 8 * way.largest if stage else 0  # in fp64, one tensor at a time
    if job.precision == "fp32":
        gradients = {0: 4 * trained, 1: 4 * trained + staged}.get(stage, 4 * part + staged)
        optimizer = 8 * trained if stage == 0 else 12 * part
        whole = min(trained, WHOLE_BUCKET + way.largest) if workers > 1 else 0  # one alone reduces nothing
        copies = 4 * whole if stage == 0 else 2 * 4 * bucket  # the bucket and its double, for overlap
    else:
        gradients = {1: 4 * trained + 2 * way.largest}.get(stage, 4 * part + staged)
        optimizer = 12 * part
        copies = 0 if stage == 1 else 2 * 2 * bucket
    if choice.offload != "none":
        optimizer = 0
        if stage == 3:
            gradients = staged  # the sums are on the host
        else:  # a buffer for the largest gradient; and its norm is taken in the backward pass
            copies += wide * way.largest
            norms, stepping = 8 * min(way.largest, part), 0
    activations, logits = _passes(job, choice)
    steady = {"weights": weights, "optimizer": optimizer, "process": _CONTEXT}
    stepping += 4 * min(part, _SUB_GROUP) if stage == 3 and choice.offload == "none" else 0
    return {
        "in the backward pass": {
            **steady,
            "gradients": gradients,
            "activations": activations,
            "logits": logits,
            "buffers": copies + norms,
        },
        "in the optimizer's step": {
            **steady,
            "gradients": gradients,
            "buffers": copies + stepping,
        },
    }


def _on_host(job: _Job, choice: Choice) -> dict[str, int]:
    """Host memory of a node's workers that have a GPU, by moment, in words that say what it is.

    Under ZeRO-3 the first rank alone reads values, and gives each layer's to all (transformers' loading for it).
    """
    way, workers, together = job.ways[choice.method], job.machine.workers, job.machine.workers_per_node
    wide, part = BYTES[job.precision], _part(way.trained, workers)
    all_weights = job.shape.parameters + (way.trained if choice.method == "lora" else 0)
    offloaded = 0
    if choice.offload != "none":
        # weights and gradients in fp32, two moments; 16-bit weights on their way back to the GPU
        offloaded = _pinned(4 * part) + 8 * part + _pinned(4 * part) + _pinned(wide * part)
        if choice.zero_stage == 3 or job.precision == "fp32":
            offloaded += _pinned(4 * part)
        if choice.zero_stage < 3:
            offloaded += _pinned(wide * way.largest)  # a gradient on its way
    born = _pinned(wide * _part(all_weights, workers)) if choice.offload == "parameters" else 0
    if job.nvme and choice.offload != "none":
        # buffers of four states of a sub-group, five of weights in passing
        passing = 5 * wide * swap_buffer(job.shape.largest, workers) if choice.offload == "parameters" else 0
        offloaded, born = 16 * min(part, _SUB_GROUP) + passing, 0
    if choice.zero_stage == 3:
        loading = {"the first worker reads the whole model, for all": wide * all_weights + together * born}
    else:
        reads = "the model is read into each worker's memory before it goes to its GPU"
        loading = {reads: together * wide * all_weights}
    training = {
        "what is offloaded, and the copy of a checkpoint that is being written": together
        * (offloaded + born + _checkpoint(job, part))
    }
    return {moment: together * _GPU_PROCESS + size for moment, size in (loading | training).items()}


def _passes(job: _Job, choice: Choice) -> tuple[int, int]:
    """Bytes of activations and of logits at the start of the backward pass.

    Activation checkpointing keeps what goes into each layer, and computes one layer again at a time. The loss holds
    three arrays of fp32 as wide as the vocabulary: the softmax's logarithm, and the gradients of it and of the logits.
    """
    shape, kept, wide = job.shape, job.ways[choice.method].kept, BYTES[job.precision]
    written = math.ceil(job.supervised_share * job.length)
    logits = 3 * 4 * written * shape.vocabulary
    working = wide * job.length * (3 * shape.intermediate + 2 * shape.hidden)
    if choice.activation_checkpointing:
        activations = shape.layers * kept.entry + kept.rest + kept.layer + working
    else:
        activations = shape.layers * kept.layer + kept.rest + working
    return choice.micro_batch * activations, choice.micro_batch * logits


def _checkpoint(job: _Job, part: int) -> int:
    """The copy from which a checkpoint is written while training goes on (ift/train/checkpoint.py): it stays."""
    return 12 * part if job.checkpoints else 0


def _part(elements: int, workers: int) -> int:
    return math.ceil(elements / workers)


def swap_buffer(largest: int, workers: int) -> int:
    """Elements of a buffer through which weights pass to a disk: a worker's part of any tensor has to fit in one.

    DeepSpeed's own size is too small for what some models have: large vocabularies, experts in one tensor.
    """
    return max(100_000_000, _part(largest, workers))


def _pinned(size: int) -> int:
    """torch's allocator of pinned memory rounds up to a power of two."""
    return 1 << (size - 1).bit_length() if size > 1 else size


# ── time ──

_PCIE = 12e9  # bytes a second
_CPU_ADAM = 5e8  # parameters a second and core
_DISK = 3e9  # bytes a second of a node
_UNPACKED = 1.3  # times that a pass takes longer whose weights of 4 bits are unpacked at every use


def step_of(job: _Job, choice: Choice) -> scaling.Step:
    """A step's time: ift/models/scaling.py for passes and collectives, and besides what offloading takes."""
    way, machine = job.ways[choice.method], job.machine
    step = scaling.step_of(
        job.shape,
        machine.rates,
        scaling.Run(
            stage=choice.zero_stage,
            workers=machine.workers,
            nodes=machine.nodes,
            rows=job.rows,
            micro_batch=choice.micro_batch,
            length=job.length,
            supervised=job.supervised_share,
            again=choice.activation_checkpointing,
            trained=None if choice.method == "full" else way.trained,
            precision=job.precision,
            slower=_UNPACKED if choice.method == "lora" and job.quantize == "4bit" else 1.0,
        ),
    )
    if choice.offload == "none":
        return step
    wide, part = BYTES[job.precision], way.trained / machine.workers
    cores = max(1, machine.cpus // machine.workers_per_node)
    offloading = (4 + wide) * part / _PCIE + part / (_CPU_ADAM * cores)
    if job.nvme:
        offloading += 2 * 16 * part * machine.workers_per_node / _DISK
    if choice.offload == "parameters":
        rounds = math.ceil(job.rows / choice.micro_batch)
        offloading += rounds * 2 * wide * job.shape.parameters / machine.workers / _PCIE
    return replace(step, updating=0.0, offloading=offloading)


def utilization_of(found: Plan, choice: Choice) -> float | None:
    """MFU of a step as predicted, by the formula that a run is logged with (speed.py); None without a known GPU."""
    seconds, machine = found.of(choice).seconds, found.machine
    if not seconds or not machine.gpu:
        return None
    tokens = found.global_batch * found.length
    work = speed.operations(
        found.shape,
        tokens=tokens,
        supervised=round(tokens * found.supervised_share),
        full=choice.method == "full",
    )
    return speed.utilization(work, seconds=seconds, device=machine.gpu, count=machine.workers)


# ── words ──


def kind_in_words(method: str, zero_stage: int, offload: str) -> str:
    """`full, ZeRO-3, optimizer offloaded`"""
    words = [{"full": "full", "lora": "LoRA"}[method], f"ZeRO-{zero_stage}"]
    if offload != "none":
        words.append({"optimizer": "optimizer offloaded", "parameters": "all offloaded"}[offload])
    return ", ".join(words)


def _why(found: Plan) -> str:
    if found.choice is None:
        return "nothing fits"
    machine, method = found.machine, found.choice.method
    memory = found.of(found.choice).memory
    assert memory is not None
    fits = sum(c.fits and c.choice.method == method for c in found.considered)
    kind = {"full": "fine-tune all weights", "lora": "train an adapter"}[method]
    which = "the only way" if fits == 1 else f"the fastest of {fits} ways"
    if machine.gpu_bytes is not None:
        room = f"{_gib(memory.worker_bytes)} of {_usable(machine.gpu_bytes) / GIB:,.1f} on each GPU"
    else:
        room = f"{_gib(memory.node)} of {_usable(machine.host_bytes_per_node) / GIB:,.1f} on each node"
    words = f"{which} to {kind} that fit{'s' * (fits == 1)}: {room}"
    if found.asked.method is not None or method == "full":
        return words
    full = [c for c in found.considered if c.choice.method == "full" and c.memory]
    least = min(full, key=lambda c: (_excess(machine, c), size_of(c)), default=None)
    short = f" The least, {least.choice}, {least.reason}." if least else ""
    return f"NOT ALL WEIGHTS ARE TRAINED, only an adapter: full fine-tuning does not fit.{short} Chosen is {words}"


def size_of(considered: Considered) -> float:
    """What counts as its memory: a worker's, or the node's where it has no other."""
    return considered.memory.worker_bytes if considered.memory else math.inf


def _excess(machine: Machine, considered: Considered) -> float:
    """How many times what there is would be needed, of the scarcer memory."""
    memory = considered.memory
    assert memory is not None
    node = memory.node / machine.host_bytes_per_node
    return max(node, memory.worker_bytes / machine.gpu_bytes) if machine.gpu_bytes else node


def _next_moves(found: Plan, best: Considered) -> str:
    """What the user could change, the nearest first."""
    asked, machine, moves = found.asked, found.machine, []
    if asked.method == "full":
        moves.append("train.method=lora or auto")
    if asked.micro_batch and asked.micro_batch > 1:
        moves.append("train.micro_batch=auto")
    if asked.activation_checkpointing is False:
        moves.append("train.activation_checkpointing=auto")
    if asked.zero_stage is not None and asked.zero_stage < 3 and machine.workers > 1:
        moves.append("train.zero_stage=auto")
    if asked.offload is not None and machine.gpu_bytes:
        moves.append("train.offload=auto")
    if best.choice.method == "lora" and found.quantize == "none" and machine.gpu_bytes:
        moves.append("train.adapter.quantize=4bit")
    memory = best.memory
    assert memory is not None
    if memory.worker["activations"] + memory.worker["logits"] > memory.worker_bytes // 4:
        moves.append("a shorter data.max_length")
    if machine.gpu_bytes is None and machine.workers_per_node > 1:
        moves.append(f"cluster.workers={machine.workers_per_node // 2}")
    moves.append("more GPUs" if machine.gpu_bytes else "a machine with more memory")
    moves.append("a smaller model")
    return ", ".join(moves[:-1]) + " or " + moves[-1]


def _machine_in_words(machine: Machine) -> str:
    if machine.gpu_bytes:
        gpus = f"{times(machine.workers, 'GPU')} of {_gib(machine.gpu_bytes)}"
        return gpus + (f" on {machine.nodes} nodes" if machine.nodes > 1 else "")
    workers = f"{machine.workers} worker{'s' * (machine.workers > 1)}"
    return (
        f"{workers} on {machine.nodes} node{'s' * (machine.nodes > 1)} of {_gib(machine.host_bytes_per_node)}"
    )


def _usable(size: int) -> float:
    return (1 - MARGIN) * size


def _needs(needed: int, there: int, whose: str) -> str:
    return f"needs {_gib(needed)} of {_usable(there) / GIB:,.1f} on {whose}"


def times(count: int, word: str) -> str:
    """`2 workers`"""
    return f"{count:,} {word}{'s' * (count != 1)}"


def _most(rows: Mapping[str, int]) -> str:
    """The largest part, in words."""
    row = max(rows, key=lambda name: rows[name])
    return f"{row} {_gib(rows[row]).removesuffix(' GiB')}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def count_in_words(parameters: int) -> str:
    """`7.62 B`"""
    for scale, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= scale:
            return f"{parameters / scale:.3g} {letter}"
    return f"{parameters:,}"
