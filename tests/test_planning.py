"""`ift plan`: what people read, what programs read, and the machine that is planned for."""

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ift import cli, planning
from ift import spec as specs
from ift.errors import IftError
from ift.models.plan import GIB, Asked, Choice, Machine
from ift.planning import Sizes, sizes_of, workers_of

LAPTOP = {"gpus": 0, "gpu_bytes": 0, "host_bytes": 24 * GIB, "cpus": 2}
PREPARED = {"packs": 90, "max_length": 512, "supervised_tokens": 90 * 64, "tokens": 90 * 500}


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is the same wherever these tests run."""
    monkeypatch.setattr(planning, "_look", lambda: dict(LAPTOP))


def spec_of(folder: Path, source: str, overrides: Sequence[str] = ()) -> specs.Spec:
    path = folder / "spec.yaml"
    path.write_text(f"name: x\nmodel: {{source: {source}}}\ntasks: [rotten_tomatoes]\n", encoding="utf-8")
    return specs.load(path, overrides)


def shown(
    folder: Path, source: str, overrides: Sequence[str] = (), *, width: int = 100, **options: Any
) -> str:
    out = StringIO()
    spec = spec_of(folder, source, overrides)
    planning.show(spec, folder, console=Console(file=out, width=width), **options)
    return out.getvalue()


SMOL = "HuggingFaceTB/SmolLM2-135M"


@pytest.mark.parametrize("width", [80, 120])
def test_the_choice_comes_first_and_everything_fits_the_terminal(tmp_path: Path, width: int) -> None:
    text = shown(tmp_path, SMOL, ["data.max_length=512", "train.global_batch=2"], width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(text.split())
    assert "SmolLM2-135M: 135 M parameters, 30 layers of width 576, vocabulary of 49,152" in words
    assert "ift's table of common models: the hub cannot be reached (HF_HUB_OFFLINE is set)" in words
    assert "machine 2 workers on CPU; a node with 24.0 GiB and 2 cores" in words
    assert (
        "packs of 512 tokens, 25% of them supervised, as is assumed until `ift prepare` has counted" in words
    )
    assert (
        "choice full, ZeRO-0, micro-batch 1 the fastest of 8 ways to fine-tune all weights that fit: "
        in words
    )
    order = [words.index(part) for part in ("choice full", "memory GiB", "combinations fit", "rejected (10%")]
    assert order == sorted(order)
    assert "16 × without a GPU there is nothing to offload from" in words


def test_the_bars_are_as_long_as_what_they_stand_for(tmp_path: Path) -> None:
    text = shown(tmp_path, SMOL, ["data.max_length=512", "train.global_batch=2"])
    bars = {line.split()[0]: line.count("█") for line in text.splitlines() if "█" in line}
    assert bars["optimizer"] == 30
    assert bars["weights"] == bars["gradients"] == 15
    parts = {"weights", "gradients", "optimizer", "activations", "logits", "buffers", "process", "checkpoint"}
    assert set(bars) <= parts


def test_what_was_prepared_is_counted_with(tmp_path: Path) -> None:
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "manifest.json").write_text(json.dumps(PREPARED), encoding="utf-8")
    words = " ".join(shown(tmp_path, SMOL, ["train.global_batch=2"]).split())
    assert "packs of 512 tokens, 12% of them supervised: 90 packs" in words


def test_an_adapter_that_nobody_asked_for_is_said_loudly(tmp_path: Path) -> None:
    words = " ".join(shown(tmp_path, "Qwen/Qwen2.5-7B", gpus=1, gpu_memory=24, host_memory=64).split())
    assert "1 GPU of 24.0 GiB; a node with 64.0 GiB" in words
    assert "choice LoRA, ZeRO-1" in words
    assert "NOT ALL WEIGHTS ARE TRAINED, only an adapter: full fine-tuning does not fit." in words


def test_where_nothing_fits_the_table_says_why_before_the_error(tmp_path: Path) -> None:
    out = StringIO()
    spec = spec_of(tmp_path, "meta-llama/Llama-3.1-70B", ["train.method=full"])
    with pytest.raises(IftError) as caught:
        planning.show(spec, tmp_path, console=Console(file=out, width=100), gpus=2, gpu_memory=80)
    assert caught.value.what.startswith(
        "training all weights of Llama-3.1-70B (70.6 B parameters) does not fit on 2 GPUs"
    )
    assert caught.value.hint == "train.method=lora or auto, more GPUs or a smaller model"
    assert "nothing fits" in out.getvalue()
    assert "full, ZeRO-3: the least needs" in " ".join(out.getvalue().split())


def test_programs_read_json(tmp_path: Path) -> None:
    read = json.loads(shown(tmp_path, SMOL, ["train.global_batch=2", "train.zero_stage=2"], as_json=True))
    assert read["choice"]["zero_stage"] == 2
    assert {c["choice"]["zero_stage"] for c in read["considered"]} == {2}
    assert read["shape"]["parameters"] == 134_515_008
    assert read["machine"]["workers"] == 2
    assert read["source"].startswith("ift's table of common models")
    assert read["probe"] is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec_of(tmp_path, SMOL)
    arguments = [
        "plan",
        str(tmp_path / "spec.yaml"),
        "train.global_batch=8",
        "--gpus",
        "4",
        "--gpu-memory",
        "16",
        "--json",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments, "--output", str(tmp_path)])
    assert end.value.code == 0
    read = json.loads(capsys.readouterr().out)
    assert read["machine"]["workers"] == 4
    assert read["machine"]["gpu_bytes"] == 16 * GIB
    assert read["precision"] == "bf16"


def test_a_probe_times_a_layer_and_the_rest_and_goes_on_in_proportion(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "prepare").mkdir()
    (tmp_path / "prepare" / "manifest.json").write_text(
        json.dumps({**PREPARED, "max_length": 64}), encoding="utf-8"
    )
    overrides = ["train.global_batch=6", "train.micro_batch=1"]
    read = json.loads(shown(tmp_path, str(tiny_model), overrides, as_json=True, probe=True))
    probe = read["probe"]
    few, more = probe["layers_timed"]
    layer = max(0.0, (probe["pass_seconds"][1] - probe["pass_seconds"][0]) / (more - few))
    a_pass = probe["pass_seconds"][0] + layer * (2 - few)  # the tiny model has two layers
    assert probe["seconds_a_step"] == pytest.approx(3 * a_pass)  # three packs for each of two workers
    assert probe["tokens_a_second"] == pytest.approx(6 * 64 / probe["seconds_a_step"])
    assert probe["hours"] == pytest.approx(90 / 6 * probe["seconds_a_step"] / 3600)
    words = " ".join(shown(tmp_path, str(tiny_model), overrides, probe=True).split())
    assert "for the 90 packs of the run" in words
    assert "without collectives, offloading and the optimizer's step" in words


def test_a_step_on_a_gpu_is_not_timed_on_a_cpu(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(IftError, match="--probe has no GPU here"):
        shown(tmp_path, str(tiny_model), gpus=1, gpu_memory=16, probe=True)


# --- machines


def test_a_machine_in_words_of_the_command_line() -> None:
    machine = planning.described_machine(
        gpus=16, gpu_memory=80.0, nodes=2, host_memory=1000.0, workers=None, global_batch=64
    )
    assert machine == Machine(
        workers=16,
        workers_per_node=8,
        nodes=2,
        gpu_bytes=80 * GIB,
        host_bytes_per_node=1000 * GIB,
        cpus=96,
    )


def test_nodes_of_gpus_that_are_not_here_are_taken_to_be_large(tmp_path: Path) -> None:
    machine = planning.described_machine(
        gpus=16, gpu_memory=80.0, nodes=2, host_memory=None, workers=None, global_batch=64
    )
    assert machine.assumed
    assert machine.host_bytes_per_node == 2 * 8 * 80 * GIB
    words = " ".join(shown(tmp_path, "Qwen/Qwen2.5-7B", gpus=8, gpu_memory=80).split())
    assert "1,280.0 GiB and 96 cores, as is assumed without --host-memory GIB" in words
    assert "choice full, ZeRO-3" in words


def test_gpus_that_a_step_does_not_reach_are_told(tmp_path: Path) -> None:
    words = " ".join(shown(tmp_path, "Qwen/Qwen2.5-7B", gpus=16, gpu_memory=80, nodes=2).split())
    assert "8 GPUs of 80.0 GiB (8 more are idle: a step's 8 packs are one a worker)" in words


def test_the_time_of_a_step_is_said_for_the_gpu_and_the_network_that_are_named(tmp_path: Path) -> None:
    machine = {"gpus": 16, "gpu_memory": 80, "nodes": 2}
    options = ["train.global_batch=64", "data.max_length=4096"]
    assumed = " ".join(shown(tmp_path, "Qwen/Qwen2.5-7B", options, width=160, **machine).split())
    assert " tokens/s a GPU on an A100 (or say --gpu NAME), 100 Gbit/s a node" in assumed
    named = {**machine, "gpu": "H100", "network": 3200}
    faster = " ".join(shown(tmp_path, "Qwen/Qwen2.5-7B", options, width=160, **named).split())
    assert "% on H100, 3,200 Gbit/s a node" in faster
    both = [
        json.loads(shown(tmp_path, "Qwen/Qwen2.5-7B", options, as_json=True, **kind))["predicted"]
        for kind in (machine, named)
    ]
    assert both[0]["mfu"] is None
    assert both[0]["seconds_a_step"] > 2 * both[1]["seconds_a_step"]


def test_a_gpu_that_nobody_knows_is_told() -> None:
    with pytest.raises(IftError) as caught:
        planning.described_machine(
            gpus=8, gpu_memory=80.0, nodes=1, host_memory=None, workers=None, global_batch=8, gpu="H10"
        )
    assert caught.value.what == "nothing is known of a GPU called H10"
    assert str(caught.value.wanted).startswith("one of B200, H200, ")
    assert caught.value.hint == "did you mean `H100`?"
    with pytest.raises(IftError) as caught:
        planning.described_machine(
            gpus=None, gpu_memory=None, nodes=None, host_memory=None, workers=None, global_batch=8, gpu="H100"
        )
    assert caught.value.what == "--gpu H100 does not say how many there are, and there is none here"


def test_half_a_gpu_is_no_machine() -> None:
    with pytest.raises(IftError) as caught:
        planning.described_machine(
            gpus=8, gpu_memory=None, nodes=None, host_memory=None, workers=None, global_batch=8
        )
    assert caught.value.wanted == "--gpu-memory GIB, such as 80"


def test_without_gpus_two_workers_share_a_node() -> None:
    machine = planning.this_machine(None, 8)
    assert (machine.workers, machine.workers_per_node, machine.gpu_bytes) == (2, 2, None)
    assert planning.this_machine(None, 1).workers == 1  # never more than packs in a step
    assert planning.this_machine(5, 8).workers_per_node == 5


def test_of_a_range_of_workers_the_number_that_needs_the_most_is_planned_for() -> None:
    assert workers_of("auto", gpu=True) is None
    assert workers_of(3, gpu=False) == 3
    assert workers_of((2, 8), gpu=True) == 2  # the fewer GPUs, the more each holds
    assert workers_of((2, 8), gpu=False) == 8  # the more processes on a node, the more it holds


def test_sizes_are_assumed_until_they_are_counted() -> None:
    assert sizes_of(None, 1024) == Sizes(
        1024, 0.25, None, "25% of them supervised, as is assumed until `ift prepare` has counted"
    )
    assert sizes_of(PREPARED, 1024) == Sizes(512, 0.125, 90, "12% of them supervised: 90 packs")


def test_what_is_auto_in_a_spec_is_left_to_the_plan(tmp_path: Path) -> None:
    assert planning.asked_of(spec_of(tmp_path, SMOL).train) == Asked()
    overrides = [
        "train.method=lora",
        "train.zero_stage=0",
        "train.offload=none",
        "train.activation_checkpointing=false",
        "train.micro_batch=4",
    ]
    assert planning.asked_of(spec_of(tmp_path, SMOL, overrides).train) == Asked("lora", 0, "none", False, 4)


def test_a_cluster_is_as_small_as_its_smallest_node_and_as_full_as_its_fullest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def node(name: str, gpus: int, *, alive: bool = True) -> dict[str, Any]:
        return {
            "NodeID": name * 56,
            "Alive": alive,
            "Resources": {"CPU": 8.0, **({"GPU": float(gpus)} if gpus else {})},
        }

    seen = {"a": 900, "b": 700, "c": 100, "d": 1}  # GiB of host memory
    nodes = [node("a", 8), node("b", 4), node("c", 0), node("d", 8, alive=False)]

    def look(num_cpus: int, num_gpus: float, scheduling_strategy: Any) -> Any:
        name = scheduling_strategy.node_id[0]
        assert (num_cpus, scheduling_strategy.soft) == (0, False)
        assert bool(num_gpus) == (name in "ab")  # a task without a part of a GPU sees none
        value = {"gpus": 1, "gpu_bytes": 40 * GIB, "host_bytes": seen[name] * GIB, "cpus": 8}
        return SimpleNamespace(remote=lambda: value)

    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "remote", lambda function: SimpleNamespace(options=look))
    monkeypatch.setattr(ray, "get", list)
    machine = planning.cluster_machine(None, 64)
    assert machine == Machine(
        workers=12,
        workers_per_node=8,
        nodes=2,
        gpu_bytes=40 * GIB,
        host_bytes_per_node=700 * GIB,
        cpus=8,
    )


def test_a_plan_is_for_the_cluster_that_a_run_would_join(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Joined(Exception):
        pass

    def connect(address: str, workers: int | None) -> None:
        raise Joined(address)

    monkeypatch.setattr("ift.cluster.connect", connect)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(Joined, match=r"^head:6379$"):
        planning.show(spec_of(tmp_path, str(tiny_model)), tmp_path / "run")


def test_the_learning_rate_stands_beside_the_plan(tmp_path: Path) -> None:
    for method, rate in (("full", "1e-05"), ("lora", "0.0001")):
        assert f"learning rate {rate}" in shown(tmp_path, SMOL, [f"train.method={method}"], width=200)
    small = {"gpus": 1, "gpu_memory": 8.0, "host_memory": 12.0, "width": 300}
    told = shown(tmp_path, "Qwen/Qwen2.5-1.5B", ["train.learning_rate=2e-5"], **small)
    assert "learning rate 2e-05" in told
    assert "the adapter is trained at train.learning_rate 2e-05, as for all weights" in told


def test_a_decision_is_what_the_pipeline_asks_for(tiny_model: Path) -> None:
    from ift.models.adapters import Adapter

    found, words = planning.decide(
        str(tiny_model),
        machine=planning.this_machine(1, 4),
        length=128,
        global_batch=4,
        supervised_share=0.5,
        asked=Asked(),
        adapter=Adapter(),
        precision="fp32",
    )
    assert found.choice == Choice("full", 0, "none", False, 1)
    assert words == f"config.json in {tiny_model}"
