import io
from pathlib import Path

import pytest
from rich.console import Console

from ift import storage
from ift.console import Terminal
from ift.train.follower import Follower

STEP = {
    "kind": "step",
    "step": 1,
    "loss": 2.0,
    "lr": 1e-5,
    "tokens": 1000,
    "supervised_tokens": 250,
    "seconds": 0.5,
}


def followed(folder: Path, device: str, world: int, **options: object) -> dict[str, float]:
    """The line that one step leaves."""
    with Terminal(Console(file=io.StringIO())).stage("train") as stage:
        follower = Follower(folder, steps=1, stage=stage, wake=lambda: None, **options)  # type: ignore[arg-type]
        follower({"kind": "start", "step": 0, "world": world, "device": device})
        follower(STEP)
    [line] = storage.read_jsonl(folder / "metrics.jsonl")
    return line


def test_tokens_a_second_of_all_and_of_those_supervised(tmp_path: Path) -> None:
    line = followed(tmp_path, "cpu", 2, work=lambda tokens, supervised: 1e15)
    assert line["tokens_per_second"] == 2000
    assert line["supervised_tokens_per_second"] == 500
    assert "mfu" not in line


def test_mfu_where_the_gpus_peak_is_known(tmp_path: Path) -> None:
    """A tenth of what two A100s can do in half a second."""
    line = followed(tmp_path, "NVIDIA A100-SXM4-80GB", 2, work=lambda tokens, supervised: tokens * 31.2e9)
    assert line["mfu"] == pytest.approx(0.1)


def test_no_mfu_of_a_gpu_that_nobody_has_looked_up(tmp_path: Path) -> None:
    assert "mfu" not in followed(tmp_path, "Some GPU", 2, work=lambda tokens, supervised: 1e15)
