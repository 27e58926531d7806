"""What a job is sent: the spec, what it names, `ift` itself; no data, no models, and words for what lacks."""

from pathlib import Path

import pytest
import yaml
from conftest import write_spec

from ift import parcel
from ift import spec as specs
from ift.errors import IftError
from ift.parcel import pack


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec with one task beside it, whose rows lie where all nodes see them."""
    path = write_spec(tmp_path, Path("/shared/model"))
    task = tmp_path / "films.yaml"
    task.write_text(task.read_text().replace("rows.jsonl", "/shared/rows.jsonl"))
    return path


def sent(found: parcel.Parcel, folder: Path) -> Path:
    """The spec as it lies on the cluster, with all that is sent."""
    found.write(folder)
    return folder / found.spec


def test_the_spec_its_tasks_and_the_source_and_nothing_else(spec: Path, tmp_path: Path) -> None:
    for name in (".venv/big", "mlruns/x", "data.parquet", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * 1000)
    found = pack(spec, ["train.epochs=3"], add=[])
    assert found.spec == "job/spec.yaml"
    assert set(found.files) == {"job/films.yaml"}
    assert {"ift/cli.py", "ift/tasks/library/trec.yaml"} <= set(found.code)
    assert not [place for place in found.code if "__pycache__" in place]
    assert pack(spec, [], add=[], code=False).code == {}
    there = specs.load(sent(found, tmp_path / "there"))
    assert there.train.epochs == 3
    assert there.tasks[0].file == str(tmp_path / "there" / "job" / "films.yaml")
    assert "optimizer" not in found.text  # what was not given is not filled in


def test_files_keep_their_places_beside_each_other(spec: Path, tmp_path: Path) -> None:
    job, own = tmp_path / "proj" / "jobs", tmp_path / "proj" / "tasks"
    for folder in (job, own):
        folder.mkdir(parents=True)
    task = own / "films.yaml"
    task.write_text((tmp_path / "films.yaml").read_text() + "hook: hooks/mine.py:row\n")
    (own / "hooks").mkdir()
    (own / "hooks" / "mine.py").write_text("def row(row):\n    return row\n")
    value = yaml.safe_load(spec.read_text())
    for written in ("../tasks/films.yaml", str(task)):  # an absolute path is one of this machine
        path = job / "x.yaml"
        path.write_text(yaml.safe_dump({**value, "tasks": [{"file": written, "weight": 2}]}))
        found = pack(path, [], add=[])
        assert set(found.files) == {"job/tasks/films.yaml", "job/tasks/hooks/mine.py"}
        there = specs.load(sent(found, tmp_path / written.replace("/", "_")))
        assert Path(str(there.tasks[0].file)).read_text() == task.read_text()
        assert there.tasks[0].weight == 2


def test_folders_of_tasks_go_along(spec: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "films.yaml").write_text((tmp_path / "films.yaml").read_text())
    value = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**value, "tasks": ["films"], "task_folders": ["own"]}))
    found = pack(spec, [], add=[])
    assert set(found.files) == {"job/own/films.yaml"}
    assert specs.load(sent(found, tmp_path / "there")).task_folders == (str(tmp_path / "there/job/own"),)


def test_what_a_second_run_replays_goes_along(spec: Path, tmp_path: Path) -> None:
    other = tmp_path / "general.yaml"
    other.write_text((tmp_path / "films.yaml").read_text().replace("name: films", "name: general"))
    replay = {"share": 0.05, "tasks": [{"file": "general.yaml"}]}
    value = yaml.safe_load(spec.read_text())
    spec.write_text(
        yaml.safe_dump({**value, "forgetting": {"on_breach": "replay", "replay": replay, "max_drop": 0.2}})
    )
    found = pack(spec, [], add=[])
    assert set(found.files) == {"job/films.yaml", "job/general.yaml"}
    second = specs.load(sent(found, tmp_path / "there")).forgetting.replay
    assert second
    assert second.tasks[0].file == str(tmp_path / "there" / "job" / "general.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tasks": [{"data": "rows.jsonl"}]},
            "`tasks` reads rows.jsonl, relative to the spec, and data is not sent",
        ),
        (
            {"model": {"source": "model"}},
            "`model.source` is model, a folder of this machine, and models are not sent",
        ),
        ({"cluster": {"storage": "checkpoints"}}, "`cluster.storage` is checkpoints, relative to a folder"),
    ],
)
def test_what_the_cluster_would_not_find_is_refused(
    spec: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "model").mkdir()
    spec.write_text(yaml.safe_dump({**yaml.safe_load(spec.read_text()), **change}))
    with pytest.raises(IftError) as error:
        pack(spec, [], add=[])
    assert message in str(error.value)
    assert "wanted:" in str(error.value)
    assert str(spec) in str(error.value)


def test_a_tasks_own_data_is_refused_unless_it_is_added(spec: Path, tmp_path: Path) -> None:
    task = tmp_path / "films.yaml"
    task.write_text(task.read_text().replace("/shared/rows.jsonl", "rows.jsonl"))
    with pytest.raises(IftError) as error:
        pack(spec, [], add=[])
    assert "the task `films` reads rows.jsonl, beside its file, and data is not sent" in str(error.value)
    assert "--add FILE for a small one" in str(error.value)
    assert "job/rows.jsonl" in pack(spec, [], add=[tmp_path / "rows.jsonl"]).files
    with pytest.raises(IftError, match=r"--add .*none: there is no such file"):
        pack(spec, [], add=[tmp_path / "none"])


def test_too_much_is_said_with_what_makes_it_so(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "big.jsonl"
    with big.open("wb") as file:
        file.truncate(parcel.LIMIT + 1)
    found = pack(spec, [], add=[big])
    with pytest.raises(IftError) as error:
        found.require_size()
    assert "what the job would be sent is 10" in str(error.value)
    assert "big.jsonl 100.0 MiB" in str(error.value)
    assert "wanted: at most 100.0 MiB, which is what Ray takes" in str(error.value)
    pack(spec, [], add=[]).require_size()


def test_the_digest_is_of_what_is_to_be_done(spec: Path, tmp_path: Path) -> None:
    before = pack(spec, [], add=[]).digest()
    assert pack(spec, [], add=[], code=False).digest() == before
    assert pack(spec, ["seed=3"], add=[]).digest() != before
    task = tmp_path / "films.yaml"
    task.write_text(task.read_text() + "# more\n")
    assert pack(spec, [], add=[]).digest() != before
