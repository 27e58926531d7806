"""How long a training step takes on many workers: arithmetic, what each ZeRO stage moves, and what of it is waited for.

In:  a model's shape, how it is trained and on how many workers; what the hardware does in a second (`Rates`).
Out: a `Step`: seconds of computing, of moving, of waiting for what is moved, of the optimizer.

    rates = gpu_rates("H100", network=3200)        # Gbit/s of a node
    step = step_of(shape, rates, Run(stage=3, workers=64, nodes=8, rows=16, micro_batch=2, length=4096))
    step.seconds, step.waiting                     # 12.1, 0.4

A step is, for the worker that has most to do,

    operations / (peak × share)  +  what of the collectives is not hidden  +  the optimizer's passes over its part

Operations: 2 a weight and token forward, 4 backward, 2 more where activations are computed again (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1), and those of attention. Collectives go round a ring: of V bytes among N workers each
sends and receives V (N − 1) / N, and waits for N − 1 hops; where there are several nodes, all that goes round passes
each node's network. What each stage moves a step, in bytes a trained parameter (two-byte gradients and weights):

                Rajbhandari et al. 2020, section 7     DeepSpeed 0.19 as the engine sets it up, R rounds of accumulation
    stage 0     4   an all-reduce of gradients         8         once a step, in fp32
    stage 1     4   reduce-scatter, all-gather         8 + 2     the same; then weights are gathered
    stage 2     4   reduce-scatter, all-gather         4 R + 2   an all-reduce in every round; then weights
    stage 3     6   two gathers, a reduce-scatter      6 R       4 R for a model that stays gathered between passes

docs/scaling.md says where the numbers below are from, and how far published runs are from what comes out.
"""

import math
from dataclasses import dataclass
from typing import Literal

from ift.models import speed
from ift.models.shape import BYTES, Shape

# DeepSpeed's own settings and what the engine tells it (ift/train/engine.py), in elements.
WHOLE_BUCKET = 500_000_000  # stage 0 reduces all gradients at once, up to so many
BUCKET = {"cpu": 50_000_000, "gpu": 200_000_000}
LIVE = 1_000_000_000  # stage 3 keeps so many gathered parameters for their next use (max_live_parameters)
PREFETCH = 50_000_000

# What a GPU does of its peak in the passes, collectives left out: fitted to one published run of each kind, MPT-7B of
# llm-foundry on eight GPUs of one node. Others are taken to be like the H100.
SHARES = {"A100": 0.65, "H100": 0.48}
_FILLED = 400  # tokens of a micro-batch at which a GPU does half of what it can
# Bytes a second out of a GPU to others of its node, by the data sheets: half of NVLink's sum of both directions.
LINKS = {
    "A100": 300e9,
    "H100 PCIe": 63e9,
    "H100 NVL": 63e9,  # its NVLink joins two alone
    "H100": 450e9,
    "H200": 450e9,
    "GH200": 450e9,
    "B200": 900e9,
    "MI300X": 448e9,
}
_PCIE_4 = 31.5e9  # of all others
LINK_SHARE = 0.8  # of it that collectives reach: 230 to 250 GB/s on an A100's 300 in nccl-tests
NETWORK_SHARE = 0.9  # of an adapter's rate, after headers
NETWORK = 100.0  # Gbit/s of a node, where nobody said
# Seconds of a ring's hop within a node and between two: NCCL's src/graph/tuning.cc, protocol "Simple".
HOPS = (3.4e-6, 9.6e-6)
HIDDEN = 0.9  # of a collective that runs beside computing: the rest of it slows the computing down
_GPU_MEMORY = 2e12  # bytes a second, an A100's
_ADAM = 34  # bytes a parameter that the optimizer reads and writes: weights and moments in fp32, gradient, bf16 weights
_UNKNOWN = "A100"  # what a GPU is taken for whose name says nothing

_CPU = 25e9  # operations a second of a core
# Times that passes take longer by stage, for DeepSpeed's hooks at each of a model's parts. A guess.
_HOOKS = (1.0, 1.005, 1.01, 1.15)


@dataclass(frozen=True)
class Rates:
    """What a worker's hardware does in a second. `math.inf` where something costs nothing."""

    kind: Literal["gpu", "cpu"]
    operations: float  # of a worker, in passes over many tokens
    near: float  # bytes out of a worker to others of its node
    far: float  # bytes out of a node to others, all its workers together
    memory: float  # bytes that the optimizer reads and writes
    hops: tuple[float, float]  # seconds of a ring's hop within a node and between two
    hidden: float  # the share of a collective that costs nothing beside computing


@dataclass(frozen=True)
class Run:
    """How a model is trained, as far as time goes by it."""

    stage: int
    workers: int
    nodes: int
    rows: int  # packs of a worker in a step, at most
    micro_batch: int  # packs
    length: int  # tokens of a pack
    supervised: float = 1.0  # of a pack's tokens
    again: bool = False  # activations are computed once more in the backward pass
    trained: int | None = None  # parameters; None: all of them
    precision: str = "bf16"
    slower: float = 1.0  # times that a pass takes longer: weights that are unpacked at every use
    hooked: bool = True  # by DeepSpeed; False for a stage as others have it, such as torch's FSDP

    @property
    def rounds(self) -> int:
        return math.ceil(self.rows / self.micro_batch)


@dataclass(frozen=True)
class Collective:
    """Something that all workers do together in a step."""

    kind: Literal["reduce", "gather", "scatter"]  # all-reduce, all-gather, reduce-scatter
    bytes: float  # of the whole, not of a worker's part, in a whole step
    calls: int
    beside: bool  # while passes go on

    def moved(self, workers: int) -> float:
        """Bytes that each worker sends, and receives."""
        return self.bytes * (2 if self.kind == "reduce" else 1) * (workers - 1) / workers

    def seconds(self, workers: int, nodes: int, rates: Rates) -> float:
        """By bandwidth and hops; 0 for one worker."""
        near, far = rates.hops
        if self.kind == "reduce":  # by trees, two ways
            hops = 2 * ((math.ceil(workers / nodes) - 1) * near + math.log2(nodes) * far)
        else:
            hops = (workers - nodes) * near + (nodes - 1) * far
        return self.moved(workers) / bandwidth(nodes, rates) + self.calls * hops


@dataclass(frozen=True)
class Step:
    """Seconds of one step."""

    computing: float  # forward and backward passes
    moving: float  # collectives, were they alone
    waiting: float  # for collectives: the part of `moving` that is not hidden, or slows passes down
    updating: float  # the optimizer
    offloading: float = 0.0

    @property
    def seconds(self) -> float:
        return self.computing + self.waiting + self.updating + self.offloading


def gpu_rates(device: str, *, network: float = NETWORK) -> Rates:
    """The rates of a GPU by its driver's name, or a part of it such as `H100`; `network` in Gbit/s of a node.

    A name that is not in ift/models/speed.py is taken for an A100.
    """
    if speed.peak(device) is None:
        device = _UNKNOWN
    peak = speed.peak(device)
    assert peak is not None
    return Rates(
        kind="gpu",
        operations=peak * (speed.named(device, SHARES) or SHARES["H100"]),
        near=LINK_SHARE * (speed.named(device, LINKS) or _PCIE_4),
        far=NETWORK_SHARE * network * 1e9 / 8,
        memory=_GPU_MEMORY,
        hops=HOPS,
        hidden=HIDDEN,
    )


def cpu_rates(cores: int) -> Rates:
    """The rates of a worker with so many cores, in fp32 over gloo. The optimizer's time is not told apart."""
    return Rates("cpu", _CPU * cores, near=1e9, far=0.5e9, memory=math.inf, hops=(0.0, 0.0), hidden=0.0)


def bandwidth(nodes: int, rates: Rates) -> float:
    """Bytes a second that a ring through all workers carries."""
    return rates.near if nodes == 1 else min(rates.near, rates.far)


def collectives(shape: Shape, run: Run, kind: Literal["gpu", "cpu"] = "gpu") -> list[Collective]:
    """What DeepSpeed moves in a step, as this project sets it up."""
    wide = BYTES[run.precision]
    trained = shape.parameters if run.trained is None else run.trained
    bucket, rounds = BUCKET[kind], run.rounds

    def calls(elements: int, size: int) -> int:
        return math.ceil(elements / size)

    if run.stage == 0:
        return [Collective("reduce", 4.0 * trained, calls(trained, WHOLE_BUCKET), beside=False)]
    gathered = Collective("gather", wide * trained, calls(trained, bucket), beside=False)
    if run.stage == 1:
        return [Collective("reduce", 4.0 * trained, calls(trained, bucket), beside=False), gathered]
    if run.stage == 2:
        reduced = Collective("reduce", wide * trained * rounds, rounds * calls(trained, bucket), beside=True)
        return [reduced, gathered]
    matrix = max(1, shape.layer // 7)  # of the seven of a layer
    passes = rounds * (1 if shape.parameters <= LIVE else 2)
    return [
        Collective(
            "gather",
            wide * shape.parameters * passes,
            passes * calls(shape.parameters, max(PREFETCH, matrix)),
            beside=True,
        ),
        Collective(
            "scatter", wide * trained * rounds, rounds * calls(trained, max(bucket, matrix)), beside=True
        ),
    ]


def operations(shape: Shape, *, tokens: float, length: int, supervised: float, passes: int) -> float:
    """Of `passes` times a forward pass (a backward pass counts two) over so many tokens in rows of `length`.

    Attention over half of the square, a row being one document: for packs this is the most that it can be.
    """
    projected = shape.hidden * shape.vocabulary * supervised
    attended = shape.layers * shape.heads * shape.head * length
    return 2 * tokens * (shape.active + projected + attended) * passes


def step_of(shape: Shape, rates: Rates, run: Run) -> Step:
    """The time of a step. Where one worker has more packs than others, all wait for it."""
    trained = shape.parameters if run.trained is None else run.trained
    passes = 3 if run.trained is None else 2  # frozen weights get no gradient
    tokens = run.rows * run.length

    work = operations(
        shape, tokens=tokens, length=run.length, supervised=run.supervised, passes=passes + run.again
    )
    at_once = run.micro_batch * run.length
    filled = at_once / (at_once + _FILLED) if rates.kind == "gpu" else 1.0
    computing = work / (rates.operations * filled) * run.slower * (_HOOKS[run.stage] if run.hooked else 1.0)
    moving = waiting = 0.0
    if run.workers > 1:
        times = [
            (c.seconds(run.workers, run.nodes, rates), c.beside) for c in collectives(shape, run, rates.kind)
        ]
        moving = sum(seconds for seconds, _ in times)
        beside = sum(seconds for seconds, beside in times if beside)
        # a backward pass is all that gradients are reduced beside; stage 3 moves something in both
        room = computing if run.stage == 3 else computing * (1 - 1 / (passes + run.again))
        waiting = moving - rates.hidden * min(beside, room)
    updating = _ADAM * trained / (1 if run.stage == 0 else run.workers) / rates.memory
    return Step(
        computing=computing,
        moving=moving,
        waiting=waiting,
        updating=updating,
    )


def hiding_tokens(rates: Rates, *, nodes: int, again: bool = False) -> float:
    """Tokens of a worker's micro-batch from which stage 3's traffic takes no longer than its passes.

    A round moves 6 bytes a parameter, and computes 6 operations a parameter and token, or 8 with activations again.
    """
    return rates.operations / bandwidth(nodes, rates) * (6 / 8 if again else 1)


def hiding_workers(
    shape: Shape, rates: Rates, *, tokens: int, together: int = 8, again: bool = False
) -> float:
    """Workers up to which the hops of stage 3's collectives take no longer than its passes, on the fastest network."""
    one_round = Run(3, together, 1, 1, 1, tokens, again=again)
    calls = sum(c.calls for c in collectives(shape, one_round, rates.kind))
    computing = step_of(shape, rates, Run(3, 1, 1, 1, 1, tokens, again=again)).computing
    near, far = rates.hops
    a_worker = near * (together - 1) / together + far / together
    return computing / (calls * a_worker)
