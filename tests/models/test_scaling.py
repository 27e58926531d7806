"""The time of a step: what the ZeRO paper says by hand, and properties that any such model has to have."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.models import scaling
from ift.models.scaling import Rates, Run, collectives, step_of
from ift.models.shape import Shape

LLAMA_8B = Shape(
    name="model", kind="llama", parameters=8_030_261_248, embedding=525_336_576, layer=218_112_000,
    largest=525_336_576, linear=6_979_321_856, experts=0, active=6_979_588_096, layers=32, hidden=4096,
    intermediate=14_336, heads=32, kv_heads=8, head=128, vocabulary=128_256, tied=False, encoder_decoder=False,
)  # fmt: skip


def scaled(factor: int) -> Shape:
    """The same with wider layers."""
    sizes = {name: getattr(LLAMA_8B, name) * factor for name in ("parameters", "layer", "linear", "active")}
    return replace(LLAMA_8B, **sizes)


def run(**changes: Any) -> Run:
    values = {"stage": 3, "workers": 64, "nodes": 8, "rows": 16, "micro_batch": 2, "length": 4096, **changes}
    return Run(**values)


def moved(stage: int, rounds: int = 1, workers: int = 10**9) -> float:
    """Bytes a parameter, that a worker sends in a step."""
    this = run(stage=stage, workers=workers, rows=rounds, micro_batch=1)
    return sum(c.moved(workers) for c in collectives(LLAMA_8B, this)) / LLAMA_8B.parameters


rates = st.builds(
    scaling.gpu_rates,
    st.sampled_from(["A100", "H100", "NVIDIA L4", "something else"]),
    network=st.sampled_from([10.0, 100.0, 400.0, 3200.0]),
)
runs = st.builds(
    Run,
    stage=st.integers(1, 3),
    workers=st.sampled_from([8, 16, 64, 1024]),
    nodes=st.just(1),
    rows=st.sampled_from([4, 8, 64]),
    micro_batch=st.sampled_from([1, 2, 4]),
    length=st.sampled_from([512, 4096]),
    supervised=st.sampled_from([0.1, 1.0]),
    again=st.booleans(),
    trained=st.sampled_from([None, 20_000_000]),
).map(lambda made: replace(made, nodes=made.workers // 8))
shapes = st.sampled_from([1, 9, 50]).map(scaled)


# --- by hand


def test_a_stage_moves_what_the_paper_says_and_fp32_sums_cost_on_top() -> None:
    """Rajbhandari et al. 2020, section 7: 2Ψ and 3Ψ elements of two bytes; what DeepSpeed does otherwise."""
    assert moved(0) == pytest.approx(2 * 4)
    assert moved(1) == pytest.approx(2 * 4 + 2)  # an all-reduce in fp32, then the weights
    assert moved(2) == pytest.approx(2 * 2 + 2)
    assert moved(3) == pytest.approx(3 * 2)


def test_only_stages_two_and_three_move_more_for_more_rounds() -> None:
    assert [moved(stage, 8) for stage in (0, 1)] == [moved(stage, 1) for stage in (0, 1)]
    assert moved(2, 8) == pytest.approx(8 * 4 + 2)
    assert moved(3, 8) == pytest.approx(8 * 6)


def test_a_ring_sends_all_but_a_workers_own_part() -> None:
    assert moved(3, workers=8) == pytest.approx(6 * 7 / 8)
    assert moved(3, workers=1) == 0


def test_a_step_by_hand() -> None:
    hardware = Rates("gpu", 100e12, near=200e9, far=50e9, memory=1e12, hops=(0.0, 0.0), hidden=1.0)
    shape = replace(LLAMA_8B, heads=0)  # no attention
    step = step_of(shape, hardware, run(rows=2, supervised=0.0, hooked=False))
    assert step.computing == pytest.approx(6 * 8192 * shape.active / 100e12 * (8192 + 400) / 8192)
    assert step.moving == pytest.approx(6 * shape.parameters * 63 / 64 / 50e9)
    assert step.waiting == pytest.approx(max(0.0, step.moving - step.computing))
    assert step.updating == pytest.approx(34 * shape.parameters / 64 / 1e12)
    assert step.seconds == step.computing + step.waiting + step.updating


def test_traffic_is_hidden_from_so_many_tokens_on() -> None:
    """At the number of tokens that is told, passes without attention and traffic take as long as each other."""
    hardware = replace(scaling.gpu_rates("H100", network=400), hops=(0.0, 0.0))
    tokens = scaling.hiding_tokens(hardware, nodes=8)
    assert tokens == pytest.approx(0.48 * 989e12 / (0.9 * 400e9 / 8))
    shape = replace(LLAMA_8B, heads=0, active=LLAMA_8B.parameters)
    step = step_of(
        shape, hardware, Run(3, 10**6, 10**5, 1, 1, round(tokens) - 400, supervised=0.0, hooked=False)
    )
    assert step.computing == pytest.approx(step.moving, rel=1e-3)


def test_hops_take_as_long_as_passes_at_so_many_workers() -> None:
    hardware = scaling.gpu_rates("H100")
    workers = scaling.hiding_workers(LLAMA_8B, hardware, tokens=4096)
    many = round(workers / 8) * 8
    step = step_of(
        LLAMA_8B, replace(hardware, near=math.inf, far=math.inf), Run(3, many, many // 8, 1, 1, 4096)
    )
    assert step.moving == pytest.approx(step.computing, rel=0.02)


def test_a_gpu_is_told_by_its_drivers_name() -> None:
    assert scaling.gpu_rates("NVIDIA A100-SXM4-80GB") == scaling.gpu_rates("A100") == scaling.gpu_rates("")
    assert scaling.gpu_rates("NVIDIA H100 PCIe").near < scaling.gpu_rates("NVIDIA H100 80GB HBM3").near


# --- properties


@given(shape=shapes, hardware=rates, this=runs)
def test_a_step_is_its_parts_and_nobody_waits_longer_than_all_takes(
    shape: Shape, hardware: Rates, this: Run
) -> None:
    step = step_of(shape, hardware, this)
    assert step.computing > 0
    assert 0 < step.waiting <= step.moving
    assert step.seconds >= step.computing


@given(shape=shapes, hardware=rates, this=runs)
def test_better_hardware_never_takes_longer(shape: Shape, hardware: Rates, this: Run) -> None:
    now = step_of(shape, hardware, this).seconds
    better = {
        "operations": 2 * hardware.operations, "near": 2 * hardware.near, "far": 2 * hardware.far,
        "memory": 2 * hardware.memory, "hops": (0.0, 0.0), "hidden": 1.0,
    }  # fmt: skip
    for name, value in better.items():
        assert step_of(shape, replace(hardware, **{name: value}), this).seconds <= now * (1 + 1e-9), name


@given(shape=shapes, hardware=rates, this=runs)
def test_more_workers_never_move_less_and_never_speed_each_other_up(
    shape: Shape, hardware: Rates, this: Run
) -> None:
    """With as many packs for each: the step gets longer, so that N workers are at most N times as fast."""
    more = replace(this, workers=2 * this.workers, nodes=2 * this.nodes)
    few, many = (step_of(shape, hardware, each) for each in (this, more))
    assert many.moving >= few.moving
    assert many.computing == few.computing
    assert many.seconds - many.updating >= few.seconds - few.updating


@given(shape=shapes, hardware=rates, this=runs)
def test_the_same_batch_on_more_workers_is_done_sooner_until_hops_count(
    shape: Shape, hardware: Rates, this: Run
) -> None:
    """Without hops, and with as fast a network for both: half of the packs each, and hardly more traffic."""
    hardware = replace(hardware, hops=(0.0, 0.0))
    this = replace(this, nodes=2, rows=2 * this.micro_batch * this.rounds)
    more = replace(this, workers=2 * this.workers, nodes=4, rows=this.rows // 2)
    few, many = (step_of(shape, hardware, each).seconds for each in (this, more))
    assert many <= few * (1 + 1 / this.workers)


@given(shape=shapes, hardware=rates, this=runs)
def test_work_costs(shape: Shape, hardware: Rates, this: Run) -> None:
    """More packs, activations once more, more supervised tokens: none is ever faster."""
    now = step_of(shape, hardware, this)
    assert step_of(shape, hardware, replace(this, rows=2 * this.rows)).seconds > now.seconds
    assert step_of(shape, hardware, replace(this, again=True)).computing >= now.computing
    assert step_of(shape, hardware, replace(this, supervised=1.0)).computing >= now.computing
    larger = replace(this, micro_batch=this.rows)  # fewer rounds, and fuller kernels
    assert step_of(shape, hardware, larger).seconds <= now.seconds * (1 + 1e-9)


@given(hardware=rates, this=runs)
def test_a_worker_alone_waits_for_nobody(hardware: Rates, this: Run) -> None:
    step = step_of(LLAMA_8B, hardware, replace(this, workers=1, nodes=1))
    assert (step.moving, step.waiting) == (0, 0)
