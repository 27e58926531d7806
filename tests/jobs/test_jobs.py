"""The jobs that come with the project: they load, read back, fit the machines that they name, and run.

Nothing is fetched: a plan needs a model's shape alone, which the table of common models has; a run gets a tiny model,
and rows of the library's own columns (tests/tasks/rows).
"""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_model
from tiny_t5 import make_t5
from tracking.servers import free_port

from ift import planning, storage
from ift import spec as specs
from ift.data import mixture
from ift.data.selection import select
from ift.models.adapters import Adapter
from ift.models.plan import Plan
from ift.tasks import probes
from ift.tasks import task as tasks

HOUSE = Path(__file__).resolve().parents[2]
JOBS = sorted((HOUSE / "jobs").glob("**/*.yaml"))
ROWS = HOUSE / "tests" / "tasks" / "rows"
RECIPES = {
    "dialogsum-full",
    "dialogsum-lora",
    "domain-adaptation",
    "flan-mixture",
    "forgetting",
    "llama-70b-zero3-offload",
    "llama-8b-zero3-2x8",
    "mixture",
    "quickstart",
    "qwen-lora-1gpu",
    "samsum-flan-t5",
}
# GPUs, GiB of each, machines, GiB of memory of each: what a job's head says that it needs; and what is chosen there.
MACHINES: dict[str, tuple[int, float | None, int, float]] = {
    "dialogsum-full": (1, 16, 1, 16),
    "dialogsum-lora": (1, 8, 1, 8),
    "domain-adaptation": (1, 24, 1, 16),
    "flan-mixture": (8, 80, 1, 64),
    "forgetting": (0, None, 1, 16),
    "llama-70b-zero3-offload": (16, 80, 2, 1800),
    "llama-8b-zero3-2x8": (16, 80, 2, 128),
    "mixture": (0, None, 1, 16),
    "quickstart": (0, None, 1, 16),
    "qwen-lora-1gpu": (1, 24, 1, 32),
    "samsum-flan-t5": (1, 16, 1, 16),
}
every_job = pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)


def test_there_are_eleven_recipes() -> None:
    assert len(JOBS) == 11
    assert {path.stem for path in JOBS} == RECIPES == set(MACHINES)


@every_job
def test_a_job_loads_and_reads_back(path: Path, tmp_path: Path) -> None:
    spec = specs.load(path)
    assert spec.name == path.stem
    if spec.evaluate.probes not in ("default", "none"):
        assert probes.load_probes(list(spec.evaluate.probes))
    selection = select(spec.tasks, spec.mixture, folders=spec.task_folders)
    sizes = dict.fromkeys(selection.tasks, 5000)
    counts = mixture.plan(selection.mix, sizes, 10_000)
    assert sum(counts.values()) == 10_000
    copy = tmp_path / "spec.yaml"
    copy.write_text(specs.dump(spec), encoding="utf-8")
    assert specs.load(copy) == spec


@every_job
def test_a_job_says_what_it_needs_and_how_it_is_run(path: Path) -> None:
    head = path.read_text(encoding="utf-8").partition("name:")[0]
    name = path.relative_to(HOUSE)
    assert "# needs  " in head
    assert f"ift submit {name} " in head
    assert f"ray job submit --working-dir . -- python jobs/run.py {name}" in head
    assert {
        match for match in re.findall(r"jobs/[\w/.-]+\.yaml", head) if not (HOUSE / match).is_file()
    } == set()
    table = (HOUSE / "jobs" / "README.md").read_text(encoding="utf-8")
    assert f"]({path.relative_to(HOUSE / 'jobs')})" in table
    hub = not specs.load(path).model.source.startswith("package:")
    assert ("model.revision=COMMIT" in head) == hub


@every_job
def test_a_job_fits_the_machine_that_it_names(path: Path) -> None:
    plan = planned(specs.load(path), *MACHINES[path.stem])
    choice = plan.choice
    assert choice is not None
    memory, head = plan.of(choice).memory, path.read_text(encoding="utf-8").partition("name:")[0]
    assert memory is not None
    if MACHINES[path.stem][0] == 0:
        assert "two cores, 16 GiB of memory" in head
    else:
        said = re.search(r"`ift plan` says ([\d.,]+\d)(?: and ([\d,]+\d))?", head)
        assert said is not None
        for number, planned_bytes in zip(said.groups(), (memory.worker_bytes, memory.node), strict=True):
            if number:
                assert float(number.replace(",", "")) == pytest.approx(planned_bytes / storage.GIB, rel=0.03)
    assert choice.method == ("lora" if "lora" in path.stem else "full")
    if "zero3" in path.stem:
        assert choice.zero_stage == 3
        assert (choice.offload == "optimizer") == ("offload" in path.stem)


@pytest.mark.parametrize(
    ("name", "override", "machine", "said"),
    [
        ("flan-mixture", "train.method=full", (1, 40, 1, 64), r"one of 40 \(([\d.]+)\)"),
        ("qwen-lora-1gpu", "train.adapter.quantize=4bit", (1, 16, 1, 32), None),
    ],
)
def test_a_job_fits_the_smaller_machine_too(
    name: str, override: str, machine: tuple[int, float, int, float], said: str | None
) -> None:
    path = HOUSE / "jobs" / f"{name}.yaml"
    plan = planned(specs.load(path, [override]), *machine)
    assert plan.choice is not None
    memory = plan.of(plan.choice).memory
    assert memory is not None
    if said:
        number = re.search(said, path.read_text(encoding="utf-8"))
        assert number is not None
        assert float(number[1]) == pytest.approx(memory.worker_bytes / storage.GIB, rel=0.03)


def planned(spec: specs.Spec, gpus: int, memory: float | None, nodes: int, host: float) -> Plan:
    source = spec.model.source
    if source.startswith("package:"):
        source = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same shape, in the table
    train = spec.train
    machine = planning.described_machine(
        gpus=gpus,
        gpu_memory=memory,
        nodes=nodes,
        host_memory=host,
        workers=planning.workers_of(spec.cluster.workers, gpu=bool(gpus)),
        global_batch=train.global_batch,
    )
    found, words = planning.decide(
        source,
        machine=machine,
        length=spec.data.max_length,
        global_batch=train.global_batch,
        supervised_share=planning.SHARE,
        asked=planning.asked_of(train),
        adapter=Adapter(**train.adapter.model_dump()),
        precision="bf16" if gpus else "fp32",
    )
    assert words.startswith("ift's table of common models")
    return found


def test_flan_is_large_and_holds_a_family_out() -> None:
    spec = specs.load(HOUSE / "jobs" / "flan-mixture.yaml")
    assert 50_000 <= (spec.mixture.size or 0) <= 100_000
    selection = select(spec.tasks, spec.mixture)
    assert len(selection.tasks) > 60
    assert "rotten_tomatoes" in selection.held_out


# ── and they run ──


def varied(row: Any, number: int) -> Any:
    """The row with a number behind its longest text, so that it is another row."""
    text = max(_texts(row), key=len, default="")
    return _replaced(row, text, f"{text} {number}") if len(text) > 12 else row


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _texts(child)


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(child, old, new) for key, child in value.items()}
    if isinstance(value, list):
        return [_replaced(child, old, new) for child in value]
    return new if value == old else value


def stand_ins(folder: Path, names: Sequence[str]) -> Path:
    """These tasks of the library with rows of the tests' own in the place of the hub's or a package's."""
    for name in names:
        rows = [
            json.loads(line) for line in (ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        files = {"train": range(8), "validation": range(100, 102), "test": range(200, 202)}
        for split, numbers in files.items():
            storage.write_jsonl(
                folder / f"{name}-{split}.jsonl", [varied(row, n) for n in numbers for row in rows]
            )
        task = yaml.safe_load((tasks.LIBRARY / f"{name}.yaml").read_text(encoding="utf-8"))
        source = {split: f"{name}-{split}.jsonl" for split in files}
        task |= {"shadows": True, "source": {"files": source}}
        storage.write_text(folder / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False))
    for hook in tasks.LIBRARY.glob("*.py"):
        shutil.copy(hook, folder)
    return folder


def made_small(path: Path, folder: Path, model: Path, **more: Any) -> specs.Spec:
    """The job as it is, with a tiny model, rows of the tests' own, and few of them."""
    as_it_is = specs.load(path)
    (folder / "tasks").mkdir()
    stand_ins(folder / "tasks", list(select(as_it_is.tasks, as_it_is.mixture).tasks))
    small = {
        "model": {"source": str(make_t5(folder / "t5") if "t5" in path.stem else model)},
        "task_folders": [str(folder / "tasks")],
        "data.max_length": 512,
        "data.split": {"train": 8, "validation": 2, "test": 2},
        "data.decontaminate": 0,  # the rows are nearly alike
        "train.epochs": 1,
        "train.global_batch": 4,
        "train.checkpoint_steps": 2,
        "train.offload": "none",  # nothing to offload from on a CPU
        "evaluate.limit": 2,
        "evaluate.probes": ["copying"],
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        **more,
    }
    if as_it_is.mixture.size or as_it_is.mixture.cap:
        small |= {"mixture.size": 12, "mixture.cap": None, "mixture.max_repeats": 100}
    return specs.load(path, [f"{key}={json.dumps(value)}" for key, value in small.items()])


@every_job
def test_a_job_reads_its_rows(
    path: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is done before a cluster starts: settings that go together, rows under every task's fields."""
    from rich.console import Console

    from ift.console import Terminal
    from ift.stages import Job

    monkeypatch.setenv("IFT_CACHE", str(tmp_path / "cache"))
    spec = made_small(path, tmp_path, tiny_model)
    job = Job(spec, tmp_path / "run", Terminal(Console(quiet=True)), header=False)
    job.check()
    assert job.gathered.bad == 0
    for name, splits in job.gathered.splits.items():
        assert len(splits["test"]) >= 1, name


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, with room for the longest answers that a task of the library asks for."""
    return make_model(tmp_path_factory.mktemp("small-model"), context=4096)


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """One Ray for all of them."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 6, "dashboard_port": free_port(), "object_store_memory": 300 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.long
@every_job
def test_a_job_runs_on_a_tiny_model(
    path: Path, tmp_path: Path, small_model: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ift import pipeline
    from ift.console import own_terminal

    monkeypatch.setenv("IFT_CACHE", str(tmp_path / "cache"))
    spec = made_small(path, tmp_path, small_model, cluster={"workers": 2, "address": ray_address})
    with own_terminal(tmp_path / "run" / "run.log") as terminal:
        summary = pipeline.run(spec, tmp_path / "run", terminal)
    assert summary["status"] == "finished"
    assert summary["train"]["steps"] >= 1
    assert summary["train"]["method"] == ("lora" if "lora" in path.stem else "full")
    assert summary["train"]["zero_stage"] == 3 or "zero3" not in path.stem
    prepared = storage.read_json(tmp_path / "run" / "prepare" / "manifest.json") or {}
    trained = {row["task"] for row in prepared["mixture"]}
    assert trained <= set(select(spec.tasks, spec.mixture, folders=spec.task_folders).tasks)
    assert summary["mlflow"]["model_version"] == "1"
    assert summary["mlflow"]["model_name"] == specs.load(path).registered_name
