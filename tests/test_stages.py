"""How a run fits into memory may change while it trains; what it is may not."""

import io
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_spec
from rich.console import Console

from ift import pipeline, planning, storage
from ift import spec as specs
from ift.cluster import Resources
from ift.console import Terminal
from ift.errors import IftError
from ift.stages import Job, _ran_out, trained_in_words

HERE = Resources(cpus=4, gpus=0, nodes=1)


def going_on(folder: Path, model: Path, *overrides: str) -> Job:
    """What `ift run` begins with, up to the plan; the prepare stage is done by hand."""
    path = folder / "spec.yaml"
    spec = specs.load(path if path.exists() else write_spec(folder, model), overrides)
    pipeline.claim(folder / "run", spec)
    prepared = {"packs": 20, "max_length": 128, "supervised_tokens": 400, "tokens": 2000}
    storage.write_json(folder / "run" / "prepare" / "manifest.json", prepared)
    job = Job(spec, folder / "run", Terminal(Console(file=io.StringIO())))
    job.plan(HERE)
    return job


def test_another_stage_is_planned_for_while_a_run_trains(tmp_path: Path, tiny_model: Path) -> None:
    first = going_on(tmp_path, tiny_model)._choice()
    assert (first["zero_stage"], first["adapter"]) == (2, None)
    plan = tmp_path / "run" / "train" / "plan.json"
    before = plan.stat().st_mtime_ns
    assert going_on(tmp_path, tiny_model, "train.zero_stage=auto")._choice() == first  # it stays as it was
    assert plan.stat().st_mtime_ns == before
    then = going_on(tmp_path, tiny_model, "train.zero_stage=3", "train.micro_batch=1")._choice()
    assert (then["zero_stage"], then["micro_batch"]) == (3, 1)


def test_a_mistake_in_what_a_second_run_replays_is_found_before_the_first(
    tmp_path: Path, tiny_model: Path
) -> None:
    replay = "forgetting={on_breach: replay, replay: {share: 0.05, tasks: [rotten_tomatos]}}"
    with pytest.raises(IftError, match="no task `rotten_tomatos` in the library"):
        going_on(tmp_path, tiny_model, replay)


def test_an_adapter_stays_one_under_another_stage(tmp_path: Path, tiny_model: Path) -> None:
    going_on(tmp_path, tiny_model)
    plan = tmp_path / "run" / "train" / "plan.json"
    settled = storage.read_json(plan) or {}
    settled["choice"]["method"] = "lora"  # as where memory was short
    storage.write_json(plan, settled)
    assert going_on(tmp_path, tiny_model, "train.zero_stage=3")._choice()["adapter"] is not None


def test_the_base_is_measured_as_the_adapter_has_it_under_it(tmp_path: Path, tiny_model: Path) -> None:
    job = going_on(tmp_path, tiny_model, "train.adapter.quantize=4bit", "train.zero_stage=auto")
    assert job._quantize(job.model_dir) == "none"  # all weights are trained
    plan = tmp_path / "run" / "train" / "plan.json"
    settled = storage.read_json(plan) or {}
    settled["choice"]["method"] = "lora"
    storage.write_json(plan, settled)
    assert job._quantize(job.model_dir) == "4bit"
    assert job._quantize(tmp_path / "run" / "model") == "none"  # an adapter knows by itself


def test_what_is_not_possible_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    going_on(tmp_path, tiny_model)
    with pytest.raises(IftError, match="without a GPU there is nothing to offload from") as caught:
        going_on(tmp_path, tiny_model, "train.offload=optimizer")
    assert caught.value.hint == "train.zero_stage=auto, train.offload=auto"


def test_a_run_that_is_trained_stays_as_it_is(tmp_path: Path, tiny_model: Path) -> None:
    going_on(tmp_path, tiny_model)
    storage.write_json(tmp_path / "run" / "train" / "manifest.json", {"steps": 5})
    with pytest.raises(IftError, match=r"it differs in `train.zero_stage`: 2 there, 3 here"):
        going_on(tmp_path, tiny_model, "train.zero_stage=3")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        (
            "train.attention=varlen",
            "`train.attention` is varlen, and it runs on GPUs alone, and this is a CPU",
        ),
        ("train.liger=true", "`train.liger` is true, and its kernels run on GPUs alone, and this is a CPU"),
    ],
)
def test_what_needs_a_gpu_is_refused_before_anything_is_measured(
    tmp_path: Path, tiny_model: Path, override: str, what: str
) -> None:
    with pytest.raises(IftError) as caught:
        going_on(tmp_path, tiny_model, override)
    assert caught.value.what == what
    with pytest.raises(IftError) as caught:
        planning.show(specs.load(tmp_path / "spec.yaml", [override]), tmp_path / "run")
    assert caught.value.what == what


def test_an_adapter_is_not_asked_the_room_of_a_model(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    monkeypatch.setattr(storage, "require_room", lambda folder, needed, what: asked.append(needed))
    monkeypatch.setattr(Job, "gathered", SimpleNamespace(rows=1))
    for method in ("full", "lora"):
        spec = specs.load(write_spec(tmp_path, tiny_model), [f"train.method={method}"])
        job = Job(spec, tmp_path / method, Terminal(Console(file=io.StringIO())))
        job.parameters = 70 * 10**9
        job.check()
    full, lora = asked
    assert full > 8 * 70 * 10**9
    assert lora <= storage.GIB


@pytest.mark.parametrize(
    ("overrides", "gpus", "workers", "says"),
    [
        (["train.best_by=metric"], 4, 4, "what train.best_by=metric asks for is computed on CPUs"),
        (["forgetting.look_steps=5"], 4, 4, "cluster.workers=3 leaves a GPU"),
        (["forgetting.look_steps=5"], 1, 1, "a second GPU would do it"),
        (["forgetting.look_steps=5"], 4, 3, None),
        (["forgetting.look_steps=5"], 0, 2, None),
        ([], 4, 4, None),
    ],
)
def test_a_large_model_that_is_graded_on_cpus_is_told_of(
    tmp_path: Path, tiny_model: Path, overrides: list[str], gpus: int, workers: int, says: str | None
) -> None:
    job = Job(
        specs.load(write_spec(tmp_path, tiny_model), overrides),
        tmp_path,
        Terminal(Console(file=io.StringIO())),
    )
    resources = Resources(cpus=64, gpus=gpus, nodes=1)
    assert job._beside(resources, workers)[1] is None  # it is small
    job.parameters = 7 * 10**9
    beside, told = job._beside(resources, workers)
    assert beside == (1 if overrides and gpus > workers else 0)
    assert (told is None) if says is None else says in (told or "")


def test_a_model_that_takes_several_gpus_is_graded_on_several_or_refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = specs.load(write_spec(tmp_path, tiny_model), ["forgetting.look_steps=5"])
    job = Job(spec, tmp_path / "run", Terminal(Console(file=io.StringIO())))
    job.parameters, needed, memory = 70 * 10**9, 3, 2000
    nodes = Resources(cpus=64, gpus=8, nodes=1)

    def a_copy(*_: Any) -> int:
        if needed > 8:
            raise IftError("no node has as many")
        return needed

    monkeypatch.setattr("ift.evaluate.evaluator.gpus_a_copy", a_copy)
    monkeypatch.setattr(job, "_planned", lambda: {"machine": {"host_bytes_per_node": memory * storage.GIB}})
    assert job._beside(nodes, 5) == (3, None)
    gpus, told = job._beside(nodes, 6)
    assert gpus == 0
    assert told is not None
    assert told.startswith(
        "a copy takes 3 GPUs of one node, so what forgetting.look_steps asks for is computed on CPUs"
    )
    assert told.endswith("cluster.workers=5 leaves 3 GPUs")
    memory = 256
    with pytest.raises(IftError) as caught:
        job._beside(nodes, 6)
    assert "70.0 B parameters in fp32 take 261 GiB of a node's 256" in caught.value.what
    assert caught.value.hint == "cluster.workers=5 leaves 3 GPUs; or leave forgetting.look_steps out"
    needed = 9
    with pytest.raises(IftError) as caught:
        job._beside(nodes, 5)
    assert caught.value.hint == "leave forgetting.look_steps out"

    # what the workers leave lies on two nodes
    monkeypatch.setattr("ift.stages.cluster.free_gpus", lambda: 2)
    assert job._still_free(2) == 2
    with pytest.raises(IftError, match="there is no room for it"):
        job._still_free(3)
    memory = 2000
    assert job._still_free(3) == 0
    heard: dict[str, Any] = {}
    monkeypatch.setattr("ift.evaluate.evaluator.evaluate", lambda *_, **how: heard.update(how))
    job._aside(tiny_model, [], gpus=3)
    assert (heard["actors"], heard["gpus"], heard["gpus_a_copy"], heard["dtype"]) == (1, 3, 3, "bfloat16")


def test_a_run_that_ended_early_says_so_and_whose_weights_came_out() -> None:
    told = {"steps": 160, "packs": 640, "final_loss": 1.174, "tokens_per_second": 47.0, "reload_error": 0.0}
    numbers, reloaded = "loss 1.174, 47 tokens/s; ", "reloaded with the same logits (error 0e+00)"
    begun = "160 steps, 640 packs each seen once"
    whole = {**told, "stopped_early": False, "best_step": None}
    assert trained_in_words(whole) == f"{begun}, {numbers}{reloaded}"
    assert trained_in_words({**whole, "best_step": 160}) == f"{begun}, {numbers}{reloaded}"
    best = trained_in_words({**told, "stopped_early": True, "best_step": 120})
    assert best == f"{begun}, ended early, {numbers}the weights of step 120 are the result; {reloaded}"


def test_what_is_measured_beside_the_training_is_measured_as_the_rest(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"ranking": "unconditional", "allow_code": True}
    spec = specs.load(write_spec(tmp_path, tiny_model, evaluate=asked))
    job = Job(spec, tmp_path / "run", Terminal(Console(file=io.StringIO())))
    heard: dict[str, Any] = {}
    monkeypatch.setattr("ift.evaluate.evaluator.evaluate", lambda *_, **how: heard.update(how))
    job._aside(tiny_model, [], gpus=0)
    assert (heard["ranking"], heard["allow_code"]) == ("unconditional", True)


def test_answers_that_took_all_their_tokens_are_counted() -> None:
    item = {"suite": "task", "name": "soda", "kind": "generation", "max_new_tokens": 8}
    ranked = {**item, "kind": "multiple_choice", "max_new_tokens": None}
    items = [item, item, item, {**item, "name": "gsm8k"}, {**item, "suite": "probe"}, ranked]
    spent = [8, 7, 8, 8, 8, 8]
    assert _ran_out(items, [{"new_tokens": count} for count in spent]) == {"soda": 2, "gsm8k": 1}


def test_what_is_there_is_counted_again_behind_training(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = specs.load(write_spec(tmp_path, tiny_model))
    counts = iter([Resources(cpus=8, gpus=1, nodes=1), Resources(cpus=64, gpus=8, nodes=2)])
    monkeypatch.setattr(pipeline.cluster, "connect", lambda *_, **__: nullcontext(Resources(8, 0, 1)))
    monkeypatch.setattr(pipeline.cluster, "with_gpu", lambda *_: next(counts))
    seen: dict[str, int] = {}
    stages = {
        name: lambda resources, name=name: seen.update({name: resources.gpus})
        for name in ("prepare", "plan", "baseline", "prompting", "train", "evaluate")
    }
    job: Any = SimpleNamespace(
        spec=spec,
        folder=tmp_path / "run",
        workers_asked=None,
        terminal=SimpleNamespace(note=print),
        tracker=SimpleNamespace(nodes_too=nullcontext),
        check_cluster=lambda: None,
        **stages,
    )
    pipeline._work(job)
    assert seen == {"prepare": 0, "plan": 1, "baseline": 1, "prompting": 1, "train": 1, "evaluate": 8}


def test_a_held_out_task_that_got_worse_is_named_and_followed_by_a_second_run(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Without a probe there is no worst one; of several runs, what was held out is no gain."""
    from ift.tracking import gate

    job = going_on(tmp_path, tiny_model, "forgetting={on_breach: lora}")
    told: list[str] = []
    job.terminal.note = told.append  # type: ignore[method-assign]
    trained = {
        "name": "reviews",
        "items": 90,
        "held_out": False,
        "gain": {"value": 0.3, "low": 0.2, "high": 0.4},
    }
    lost = {"name": "nli", "items": 90, "held_out": True, "gain": {"value": -0.3, "low": -0.4, "high": -0.2}}
    judged = gate.decide([trained, lost], [], max_drop=0.05)
    found = {
        "gate": judged,
        "train": {"method": "full"},
        "task": [trained, lost],
        "name": "a",
        "run_dir": "a",
    }
    assert pipeline._second(job, found) is not None
    words = "it forgot too much (task nli: drop +0.300 [+0.200, +0.400] over 90 items"
    assert any(note.startswith(words) for note in told)
    attempt = pipeline._attempt({**found, "forgetting": {"breach": True}})
    assert (attempt["breaches"], attempt["gains"]) == (["task nli"], {"reviews": 0.3})


def test_a_task_of_the_harness_that_is_called_as_one_of_the_run_is_refused(
    tmp_path: Path, tiny_model: Path
) -> None:
    job = going_on(tmp_path, tiny_model, "evaluate.harness=[films]")
    with pytest.raises(IftError, match=r"`evaluate\.harness` names films, and so is a task or a probe"):
        job.check()


def test_other_draws_of_solved_examples_are_asked_anew(tmp_path: Path, tiny_model: Path) -> None:
    job = going_on(tmp_path, tiny_model, "evaluate.shots=[1, 3]", "evaluate.draws=2")
    assert job._shots_left() == [1, 3]
    manifest = tmp_path / "run" / "prompting" / "1" / "manifest.json"
    storage.write_json(manifest, {"items": 4})  # as an older ift has left it
    assert job._shots_left() == [3]
    storage.write_json(manifest, {"items": 4, "draws": 2})
    assert job._shots_left() == [3]
    storage.write_json(manifest, {"items": 4, "draws": 1})
    assert job._shots_left() == [1, 3]
