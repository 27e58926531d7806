"""The jobs that come with the project say what they mean: they load, name tasks that are there, and read back."""

from pathlib import Path

import pytest

from ift import spec as specs
from ift.data import mixture
from ift.data.selection import select
from ift.tasks import probes

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("**/*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
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


def test_there_are_jobs_of_both_kinds() -> None:
    tasks = {path.stem: len(select((s := specs.load(path)).tasks, s.mixture).tasks) for path in JOBS}
    assert tasks["quickstart"] == 1
    assert tasks["flan"] > 60
