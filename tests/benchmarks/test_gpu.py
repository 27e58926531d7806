"""benchmarks/gpu: the same work for every arm, operations as the product counts them, the whole with a tiny model."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ift.models import speed
from ift.models.shape import built, shape_of

HERE = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """`work` and `train` as modules; what they put before the path is taken away again."""
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    before = set(sys.modules)
    yield {name: importlib.import_module(name) for name in ("work", "train")}
    for name in {"work", "train", "common"} - before:
        sys.modules.pop(name, None)


def test_every_arm_is_given_the_same_documents(modules: dict[str, ModuleType]) -> None:
    work = modules["work"]
    for kind in work.LENGTHS:
        some, again = (
            work.documents(kind, tokens=50_000, vocabulary=512, longest=4096, seed=3) for _ in range(2)
        )
        assert some == again
        assert sum(len(d.ids) for d in some) >= 50_000
        assert all(0 < d.prompt < len(d.ids) <= 4096 for d in some)
    shares = {}
    for kind in work.LENGTHS:
        found = work.documents(kind, tokens=400_000, vocabulary=512, longest=4096, seed=0)
        shares[kind] = 1 - sum(d.prompt for d in found) / sum(len(d.ids) for d in found)
    assert shares["flan"] < shares["dialogsum"] < 0.2 < 0.75 < shares["long"]


@pytest.mark.parametrize("name", ["1B", "3B", "8B"])
def test_operations_are_those_that_a_run_logs(modules: dict[str, ModuleType], name: str) -> None:
    work = modules["work"]
    shape = shape_of(built(name, {"model_type": "llama", **work.SHAPES[name]}), name)
    ours = work.operations(work.SHAPES[name], tokens=1000, projected=130)
    assert ours == pytest.approx(speed.operations(shape, tokens=1000, supervised=130, full=True))
    assert shape.parameters == pytest.approx(float(name[:-1]) * 1e9, rel=0.25)


def test_an_arm_that_cannot_be_is_skipped_with_its_reason(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    train = modules["train"]
    nowhere = str(tmp_path / "no-python")
    assert train.run(nowhere, "theirs.py", {}, timeout=60) == {"skipped": f"there is no {nowhere}"}
    shape = train.work.SHAPES["tiny"]
    good = {
        "how": "full", "seconds": [1.0, 3.0], "tokens": [100, 300], "supervised": [10, 30], "peak_bytes": 2**30,
        "split": {"data": 0.1, "forward": 0.3, "backward": 0.5, "optimizer": 0.1, "communication": None},
    }  # fmt: skip
    arms = {
        "ours": train.summary([good, {"skipped": "lost"}], shape, 1e12),
        "trl": train.summary([{"skipped": "trl is not installed"}], shape, 1e12),
    }
    assert arms["ours"]["tokens_a_second"]["median"] == 100
    assert arms["ours"]["mfu"] == train.work.operations(shape, tokens=400, projected=40) / 4 / 1e12
    text = train.table_of({"cases": [{"model": "tiny", "lengths": "flan", "arms": arms}]})
    ours, trl = text.splitlines()[2:]
    assert "| ours | 100 | " in ours
    assert "| 10% / 30% / 50% / 10% / 0% |" in ours
    assert trl.endswith("| skipped: trl is not installed |")


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_with_a_tiny_model(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    done = subprocess.run(
        [
            sys.executable, str(HERE / "train.py"), "--models", "tiny", "--lengths", "flan", "--length", "128",
            "--arms", "ours", "bare", "trl", "--batch", "2", "--steps", "2", "--warm", "1", "--rounds", "1",
            "--shares", "0.1", "1.0", "--threads", "1", "--peak-size", "128",
            "--work", str(tmp_path / "work"), "--output", str(output),
        ],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["about"]["machine"]["cores"] > 0
    (case,) = written["results"]["cases"]
    ours, bare, trl = (case["arms"][name] for name in ("ours", "bare", "trl"))
    assert [r["tokens"] for r in ours["runs"]] == [r["tokens"] for r in bare["runs"]]
    # the same packs and the same weights: before the first update the losses are the same
    assert ours["runs"][0]["loss"][0] == pytest.approx(bare["runs"][0]["loss"][0], rel=1e-5)
    assert set(ours["split"]) == {"data", "forward", "backward", "optimizer", "communication"}
    assert ours["split"]["forward"] > 0
    assert "skipped" in trl or trl["tokens_a_second"]["median"] > 0
    for line in written["results"]["logits"]["tiny"]["shares"]:
        assert line["supervised"]["loss"] == pytest.approx(line["all"]["loss"], rel=1e-4)
