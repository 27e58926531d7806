"""The planner's arithmetic: by hand where the numbers are published, and properties that any count has to have."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.models import plan as plans
from ift.models.plan import GIB, Asked, Choice, Machine, Memory, Plan
from ift.models.shape import Shape, Way, kept_by_formula


def llama(parameters: int, *, layers: int = 32, hidden: int = 4096, vocabulary: int = 32_000) -> Shape:
    """A model with so many parameters, in all else like Llama 2 of 7 B."""
    embedding = vocabulary * hidden
    return Shape(
        name="model",
        kind="llama",
        parameters=parameters,
        embedding=embedding,
        layer=(parameters - 2 * embedding) // layers,
        largest=embedding,
        linear=parameters - 2 * embedding,
        experts=0,
        active=parameters - 2 * embedding,
        layers=layers,
        hidden=hidden,
        intermediate=11_008 * hidden // 4096,
        heads=hidden // 128,
        kv_heads=hidden // 128,
        head=128,
        vocabulary=vocabulary,
        tied=False,
        encoder_decoder=False,
    )


SMOL = replace(
    llama(134_515_008, layers=30, hidden=576, vocabulary=49_152),
    heads=9,
    kv_heads=3,
    head=64,
    intermediate=1536,
    tied=True,
    active=106_203_456,
)


def ways_of(shape: Shape, precision: str, length: int) -> dict[str, Way]:
    attention = "packed" if precision == "fp32" else "varlen"
    kept = kept_by_formula(shape, precision=precision, attention=attention, length=length)
    adapter = shape.layers * 16 * 7 * (shape.hidden + shape.intermediate)
    return {
        "full": Way(shape.parameters, shape.largest, kept),
        "lora": Way(adapter, 16 * shape.intermediate, kept),
    }


def gpus(workers: int, *, gib: float = 80.0, host: float = 1000.0, nodes: int = 1) -> Machine:
    return Machine(
        workers=workers,
        workers_per_node=workers // nodes,
        nodes=nodes,
        gpu_bytes=int(gib * GIB),
        host_bytes_per_node=int(host * GIB),
        cpus=64,
    )


def cpus(workers: int, *, host: float = 24.0) -> Machine:
    return Machine(
        workers=workers,
        workers_per_node=workers,
        nodes=1,
        gpu_bytes=None,
        host_bytes_per_node=int(host * GIB),
        cpus=2,
    )


ANYTHING = Asked()


def planned(shape: Shape, machine: Machine, asked: Asked = ANYTHING, **changes: Any) -> Plan:
    precision = "fp32" if machine.gpu_bytes is None else "bf16"
    values: dict[str, Any] = {
        "length": 1024,
        "global_batch": 64,
        "supervised_share": 0.25,
        "precision": precision,
        "checkpoints": False,
        **changes,
    }
    ways = ways_of(shape, values["precision"], values["length"])
    return plans.plan(shape, ways, machine=machine, asked=asked, **values)


def memory_of(shape: Shape, machine: Machine, choice: Choice, **changes: Any) -> Memory:
    asked = Asked(
        choice.method,
        choice.zero_stage,
        choice.offload,
        choice.activation_checkpointing,
        choice.micro_batch,
    )
    memory = planned(shape, machine, asked, **changes).of(choice).memory
    assert memory is not None
    return memory


# --- by hand


def test_in_mixed_precision_a_parameter_costs_what_the_zero_paper_says() -> None:
    """Rajbhandari et al. 2020, figure 1, for 7.5 B parameters on 64 GPUs; but gradients are summed in fp32 here."""
    shape, machine = llama(7_500_000_000), gpus(64)
    rows = {
        stage: memory_of(shape, machine, Choice("full", stage, "none", False, 1)).worker
        for stage in (1, 2, 3)
    }
    largest = 2 * 32_000 * 4096
    staged = (
        2 * 200_000_000 + largest
    )  # a bucket of bf16 gradients on its way, and one that is too large for it
    gathered = (
        2 * 1_000_000_000 + 2 * 50_000_000
    )  # stage 3: whole layers for their next use, and the ones after them
    by_64 = 117_187_500
    assert [rows[stage]["weights"] for stage in rows] == [15e9, 15e9, 2 * by_64 + gathered]
    assert [rows[stage]["gradients"] for stage in rows] == [
        30e9 + largest,
        4 * by_64 + staged,
        4 * by_64 + staged,
    ]
    assert [rows[stage]["optimizer"] for stage in rows] == [12 * by_64] * 3


def test_seven_billions_on_eight_gpus_under_zero_3() -> None:
    rows = memory_of(llama(7_000_000_000), gpus(8), Choice("full", 3, "none", False, 1)).worker
    assert rows["optimizer"] == 10_500_000_000  # (4 + 4 + 4) / 8 bytes of each
    assert rows["weights"] == 1_750_000_000 + 2_100_000_000
    assert rows["gradients"] == 3_500_000_000 + 400_000_000 + 262_144_000


def test_in_fp32_a_parameter_costs_sixteen_bytes_and_its_copy_to_be_reduced() -> None:
    rows = memory_of(SMOL, cpus(1), Choice("full", 0, "none", False, 1)).worker
    assert (rows["weights"], rows["gradients"], rows["optimizer"]) == (
        538_060_032,
        538_060_032,
        1_076_120_064,
    )
    assert rows["buffers"] == 538_060_032 + 4 * 28_311_552


def test_only_supervised_tokens_have_logits() -> None:
    choice = Choice("full", 2, "none", False, 2)
    rows = memory_of(SMOL, cpus(2), choice, length=1000, supervised_share=0.2).worker
    assert rows["logits"] == 2 * 200 * 49_152 * 4 * 3
    all_of_them = memory_of(SMOL, cpus(2), choice, length=1000, supervised_share=1.0).worker
    assert all_of_them["logits"] == 5 * rows["logits"]


def test_an_adapter_leaves_the_frozen_weights_without_gradients_and_moments() -> None:
    shape, machine = llama(7_000_000_000), gpus(1)
    rows = memory_of(shape, machine, Choice("lora", 1, "none", False, 1)).worker
    trained = 32 * 16 * 7 * (4096 + 11_008)
    assert rows["weights"] == 2 * (7_000_000_000 + trained)
    assert rows["optimizer"] == 12 * trained
    of_4_bits = memory_of(shape, machine, Choice("lora", 1, "none", False, 1), quantize="4bit").worker
    # NF4 with its scales: 4.127 bits each (Dettmers et al. 2023, section 3); embeddings and projection stay
    linear = 7_000_000_000 - 2 * 32_000 * 4096
    assert of_4_bits["weights"] == pytest.approx(
        4.127 / 8 * linear + 2 * (2 * 32_000 * 4096 + trained), abs=1
    )


def test_activation_checkpointing_keeps_what_goes_into_each_layer_and_one_layer_in_full() -> None:
    shape, machine = llama(7_000_000_000), gpus(8)
    kept = ways_of(shape, "bf16", 8192)["full"].kept
    working = 2 * 8192 * (3 * 11_008 + 2 * 4096)
    without, with_it = (
        memory_of(shape, machine, Choice("full", 2, "none", again, 1), length=8192).worker["activations"]
        for again in (False, True)
    )
    assert without == 32 * kept.layer + kept.rest + working
    assert with_it == 32 * 2 * 8192 * 4096 + kept.rest + kept.layer + working


def test_offloading_moves_the_optimizer_to_the_host() -> None:
    shape, machine = llama(7_000_000_000), gpus(2)
    none, some, all_of_it = (
        memory_of(shape, machine, Choice("full", 3, offload, False, 1)) for offload in plans.OFFLOADS
    )
    assert none.worker["optimizer"] == 42_000_000_000
    assert some.worker["optimizer"] == all_of_it.worker["optimizer"] == 0
    assert all_of_it.worker["weights"] == some.worker["weights"] - 7_000_000_000
    assert none.node < some.node < all_of_it.node
    # two workers, each with half of the weights in fp32, the gradients twice, the weights in 16 bits, all pinned to a
    # power of two; and of the moments
    pinned = 3 * 16 * GIB + 8 * GIB
    assert some.node - plans.HOST == 2 * (pinned + 28_000_000_000 + 3 * GIB)
    assert some.node_moment.startswith("what is offloaded")


def test_one_gpu_with_the_optimizer_offloaded_keeps_its_gradients_in_fp32_at_stage_2() -> None:
    """DeepSpeed's stage 1 would keep them twice, once a parameter and once in a row, beside buckets in fp32."""
    shape = llama(8_030_261_248, hidden=4096, vocabulary=128_256)
    found = planned(shape, gpus(1, host=400), Asked("full", None, "optimizer"))
    assert found.choice is not None
    assert found.choice.zero_stage == 2
    reasons = {c.choice.zero_stage: c.reason for c in found.considered if c.memory is None}
    assert reasons[1].startswith(
        "with the optimizer offloaded, stage 1 sums all gradients in fp32 on the GPU"
    )
    assert reasons[3] == "one worker has nobody to divide with"
    rows = found.of(replace(found.choice, micro_batch=1, activation_checkpointing=True)).memory
    assert rows is not None
    largest, everything = 128_256 * 4096, 8_030_261_248
    assert rows.worker["weights"] == 2 * everything
    assert rows.worker["optimizer"] == 0
    assert rows.worker["gradients"] == 4 * everything + 2 * 200_000_000 + 2 * largest
    # two buckets, a gradient on its way to the host, and its norm in fp64
    assert rows.worker["buffers"] == 2 * 2 * 200_000_000 + 2 * largest + 8 * largest
    fp32 = planned(shape, gpus(1, gib=200, host=400), Asked("full", None, "optimizer"), precision="fp32")
    assert {c.choice.zero_stage for c in fp32.considered if c.memory} == {1}


def test_to_a_disk_is_offloaded_under_zero_3_alone() -> None:
    for asked in (Asked("full", None, "optimizer"), Asked("full", None, "parameters")):
        found = planned(llama(7_000_000_000), gpus(1, host=200), asked, nvme=True)
        assert {c.choice.zero_stage for c in found.considered if c.memory} == {3}
    with_stage = planned(llama(7_000_000_000), gpus(2), Asked("full", 2, "optimizer"), nvme=True)
    assert {c.reason for c in with_stage.considered} == {"DeepSpeed offloads to a disk under ZeRO-3 alone"}


def test_buffers_to_a_disk_hold_a_part_of_the_largest_tensor() -> None:
    choice = Choice("full", 3, "parameters", True, 1)
    large = replace(llama(70_000_000_000, layers=80, hidden=8192), largest=3_000_000_000)
    assert plans.swap_buffer(100_000, 2) == 100_000_000
    job = plans._Job(
        large, ways_of(large, "bf16", 1024), 1024, 64, 0.25, gpus(2), "bf16", "none", True, False
    )
    held = plans._on_host(job, choice)
    words = "what is offloaded, and the copy of a checkpoint that is being written"
    assert held[words] == 2 * (plans._GPU_PROCESS + 16 * 1_000_000_000 + 5 * 2 * 1_500_000_000)


def test_born_partitioned_a_model_is_read_once_on_a_node() -> None:
    shape, machine = llama(7_000_000_000), gpus(8)
    two, three = (memory_of(shape, machine, Choice("full", stage, "none", False, 1)) for stage in (2, 3))
    assert two.node - three.node == 7 * 14_000_000_000
    assert three.node_moment == "the first worker reads the whole model, for all"


def test_a_checkpoint_on_its_way_is_a_copy_of_weights_and_moments() -> None:
    choice = Choice("full", 2, "none", False, 1)
    rows = memory_of(SMOL, cpus(2), choice, checkpoints=True).worker
    assert rows["checkpoint"] == 6 * 134_515_008
    assert memory_of(SMOL, cpus(2), choice).worker["checkpoint"] == 0


def test_the_engine_uses_the_buckets_that_the_plan_counts_with() -> None:
    from ift.train.engine import deepspeed_config
    from ift.train.job import Job

    here = Path("here")
    job = Job(
        model_dir=here, stream_dir=here, validation_dir=here, packs=8, validation_packs=0, epoch_ends=(8,),
        export_dir=here, checkpoints="here", global_batch=8, learning_rate=1e-5, schedule="constant",
        warmup=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=0, micro_batch=1, zero_stage=2,
        precision="fp32", threads=1,
    )  # fmt: skip
    assert deepspeed_config(job, 2)["zero_optimization"]["reduce_bucket_size"] == plans.BUCKET["cpu"]


# --- properties

choices = st.builds(
    Choice,
    st.sampled_from(plans.METHODS),
    st.integers(1, 3),
    st.just("none"),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
)
shapes = st.builds(
    llama,
    st.integers(600_000_000, 400_000_000_000),
    layers=st.integers(4, 120),
    hidden=st.sampled_from([1024, 4096, 8192]),
)
lengths = st.sampled_from([256, 1024, 8192])


@given(
    shape=shapes,
    choice=choices,
    length=lengths,
    fewer=st.integers(1, 64),
    times=st.integers(2, 8),
    gpu=st.booleans(),
)
def test_more_workers_never_need_more_memory_each(
    shape: Shape, choice: Choice, length: int, fewer: int, times: int, gpu: bool
) -> None:
    make = gpus if gpu else cpus
    few, many = (
        memory_of(shape, make(workers), choice, length=length, global_batch=2048)
        for workers in (fewer, fewer * times)
    )
    assert many.worker_bytes <= few.worker_bytes
    if choice.zero_stage > 0:
        assert many.worker["optimizer"] < few.worker["optimizer"]


@given(
    shape=shapes.filter(lambda s: s.parameters > 20e9),
    workers=st.integers(2, 512),
    method=st.sampled_from(plans.METHODS),
)
def test_a_higher_stage_never_holds_more(shape: Shape, workers: int, method: str) -> None:
    held = []
    for stage in (1, 2, 3):
        rows = memory_of(
            shape, gpus(workers), Choice(method, stage, "none", True, 1), global_batch=workers
        ).worker
        held.append(rows["weights"] + rows["gradients"] + rows["optimizer"])
    if method == "full":
        assert held[0] >= held[1]
    assert held[1] >= held[2]


@given(shape=shapes, choice=choices, length=lengths)
def test_more_tokens_never_need_less_and_checkpointing_never_more(
    shape: Shape, choice: Choice, length: int
) -> None:
    def bytes_of(choice: Choice, length: int = length) -> int:
        return memory_of(shape, gpus(2), choice, length=length).worker_bytes

    assert bytes_of(choice, 2 * length) >= bytes_of(choice)
    assert bytes_of(replace(choice, micro_batch=2 * choice.micro_batch)) >= bytes_of(choice)
    again, not_again = (replace(choice, activation_checkpointing=value) for value in (True, False))
    assert bytes_of(again) <= bytes_of(not_again)


@given(
    shape=shapes,
    workers=st.sampled_from([1, 2, 8]),
    gib=st.sampled_from([16, 24, 40, 80]),
    quantize=st.sampled_from(["none", "4bit"]),
)
def test_what_is_chosen_fits_and_nothing_that_fits_is_faster(
    shape: Shape, workers: int, gib: int, quantize: str
) -> None:
    found = planned(shape, gpus(workers, gib=gib), quantize=quantize)
    fits = [c for c in found.considered if c.fits]
    if found.choice is None:
        assert fits == []
        return
    chosen = found.of(found.choice)
    assert chosen.memory is not None
    assert chosen.memory.worker_bytes <= 0.9 * gib * GIB
    assert chosen.memory.node <= 0.9 * 1000 * GIB
    same = [c for c in fits if c.choice.method == found.choice.method]
    assert chosen.seconds == min(c.seconds or 0.0 for c in same)
    if found.choice.method == "lora":
        assert not any(c.choice.method == "full" for c in fits)
    for considered in found.considered:
        assert considered.fits == (considered.reason == "")
        assert (considered.memory is None) == (considered.seconds is None)


@given(shape=shapes, workers=st.sampled_from([1, 2, 8]))
def test_out_of_memory_leads_to_less_and_less_until_nothing_is_left(shape: Shape, workers: int) -> None:
    found = planned(shape, gpus(workers))
    choice, sizes, methods = found.choice, [], []
    while choice is not None:
        sizes.append(plans.size_of(found.of(choice)))
        methods.append(choice.method)
        choice = plans.next_choice(found, after=choice)
    assert all(after <= 0.95 * before for before, after in pairwise(sizes))
    assert methods == sorted(methods)  # full before lora


# --- choices


@pytest.mark.parametrize("workers", [1, 2])
def test_a_small_model_on_a_laptop_is_trained_in_full(workers: int) -> None:
    found = planned(SMOL, cpus(workers), length=512, global_batch=2, checkpoints=True)
    assert found.choice == Choice("full", 0, "none", False, 1)
    assert " ways to fine-tune all weights that fit: " in found.why
    assert " on each node" in found.why


def test_what_is_asked_for_is_kept_to() -> None:
    asked = Asked("lora", 2, "none", True, 3)
    found = planned(llama(7_000_000_000), gpus(8), asked)
    assert [c.choice for c in found.considered] == [Choice("lora", 2, "none", True, 3)]
    one_stage = planned(llama(7_000_000_000), gpus(8), Asked(zero_stage=3))
    assert {c.choice.zero_stage for c in one_stage.considered} == {3}


def test_a_micro_batch_is_a_power_of_two_that_a_worker_has() -> None:
    found = planned(SMOL, cpus(2), global_batch=13)  # seven packs for one of the two
    assert {c.choice.micro_batch for c in found.considered} == {1, 2, 4}


def test_where_nothing_but_an_adapter_fits_it_is_said_loudly() -> None:
    found = planned(llama(7_000_000_000), gpus(1, gib=24, host=64))
    assert found.choice is not None
    assert found.choice.method == "lora"
    assert found.why.startswith(
        "NOT ALL WEIGHTS ARE TRAINED, only an adapter: full fine-tuning does not fit. The least, full, ZeRO-"
    )
    asked_for = planned(llama(7_000_000_000), gpus(1, gib=24, host=64), Asked(method="lora"))
    assert asked_for.choice == found.choice
    assert asked_for.why.startswith("the fastest of ")


def test_full_never_falls_back_and_the_refusal_says_what_to_do() -> None:
    found = planned(
        llama(7_000_000_000), gpus(1, gib=24, host=64), Asked(method="full", zero_stage=1, offload="none")
    )
    assert (found.choice, found.why) == (None, "nothing fits")
    error = plans.refusal(found)
    rows = memory_of(
        llama(7_000_000_000), gpus(1, gib=24, host=64), Choice("full", 1, "none", True, 1)
    ).worker
    assert error.what == (
        "training all weights of model (7 B parameters) does not fit on 1 GPU of 24.0 GiB, of which 10% stays free: "
        f"the least, full, ZeRO-1, activation checkpointing, micro-batch 1, needs {sum(rows.values()) / GIB:.1f} GiB "
        "of 21.6 on a GPU; optimizer 78.2"
    )
    assert error.wanted == "memory for one of the combinations that `ift plan` lists"
    assert error.hint == "train.method=lora or auto, train.offload=auto, more GPUs or a smaller model"


def test_on_a_cpu_the_memory_of_all_workers_of_a_node_counts() -> None:
    found = planned(SMOL, cpus(2, host=8), Asked("full", 0, "none", False, 1), length=512)
    (considered,) = found.considered
    assert considered.reason.startswith("needs ")
    assert " GiB of 7.2 on a node; 2 workers with " in considered.reason
    assert considered.reason.endswith(", optimizer 1.0")


@pytest.mark.parametrize(
    ("machine", "asked", "changes", "reason"),
    [
        (gpus(2), Asked(zero_stage=0), {}, "DeepSpeed has no bf16 at stage 0 that sums gradients in fp32"),
        (cpus(2), Asked(offload="optimizer", zero_stage=1), {}, "without a GPU there is nothing to offload from"),
        (gpus(2), Asked(offload="optimizer", zero_stage=0), {"precision": "fp32"},
         "offloading the optimizer needs ZeRO stage 1 or more"),
        (gpus(2), Asked(offload="parameters", zero_stage=2), {}, "offloading the weights needs ZeRO stage 3"),
        (cpus(2), Asked(method="lora"), {"quantize": "4bit"}, "weights of 4 bits need a GPU"),
        (gpus(2), Asked("lora", 3), {"quantize": "4bit"}, "ZeRO-3 cannot divide weights of 4 bits among the workers"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_why(
    machine: Machine, asked: Asked, changes: dict[str, Any], reason: str
) -> None:
    found = planned(llama(1_000_000_000), machine, replace(asked, micro_batch=1), **changes)
    reasons = {c.reason for c in found.considered if c.memory is None}
    assert reason in reasons
    if found.choice is None:
        assert reason in plans.refusal(found).what


def test_one_worker_divides_nothing_unless_it_is_asked_to() -> None:
    shape = llama(1_000_000_000)
    stages = {c.choice.zero_stage for c in planned(shape, cpus(1, host=500)).considered if c.memory}
    assert stages == {0}
    stages = {
        c.choice.zero_stage
        for c in planned(shape, gpus(1)).considered
        if c.fits and c.choice.offload == "none"
    }
    assert stages == {1}
    asked = planned(shape, cpus(1, host=500), Asked(zero_stage=3))
    assert {c.choice.zero_stage for c in asked.considered if c.fits} == {3}


def test_a_plan_is_plain_json() -> None:
    found = planned(SMOL, cpus(2))
    read = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert read["choice"] == {
        "method": "full", "zero_stage": 0, "offload": "none", "activation_checkpointing": False, "micro_batch": 1,
    }  # fmt: skip
    assert len(read["considered"]) == len(found.considered)
    assert set(read["considered"][0]["memory"]["worker"]) == set(plans.ROWS)
