"""What is planned, beside the peak that the kernel has seen of processes that train with the engine of a run."""

import subprocess
import sys
from pathlib import Path

import pytest

from ift import storage

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "plan.py"


def ratios(tmp_path: Path, model: str, *cases: str, length: int) -> dict[tuple[str, int, bool], float]:
    """Planned over measured, by method, ZeRO stage and whether activations are computed again."""
    lines = tmp_path / "lines.jsonl"
    subprocess.run(
        [
            *(sys.executable, str(BENCHMARK), "--model", model, "--length", str(length)),
            *("--steps", "2", "--output", str(lines), "--cases", *cases),
        ],
        check=True,
        cwd=tmp_path,
    )
    return {(s["method"], s["stage"], s["again"]): s["ratio"] for s in storage.read_jsonl(lines)}


@pytest.mark.slow
def test_a_small_models_plan_is_near_its_peak(tmp_path: Path) -> None:
    found = ratios(tmp_path, "tiny", "1:0:full", "2:2:full", "2:3:full:again", "2:2:lora", length=128)
    assert len(found) == 4
    assert found == pytest.approx(dict.fromkeys(found, 1.0), rel=0.15)


@pytest.mark.slow
@pytest.mark.real
def test_the_real_models_plan_is_near_its_peak(real_model: Path, tmp_path: Path) -> None:
    found = ratios(tmp_path, str(real_model), "1:0:full", "1:0:lora:again", length=512)
    assert len(found) == 2
    assert found == pytest.approx(dict.fromkeys(found, 1.0), rel=0.15)
