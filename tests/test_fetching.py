"""Models by their names: a run's folder, a version in the registry, an alias that moves."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import make_model
from mlflow import MlflowClient

from ift import fetching, pipeline, spec, storage
from ift.cli import cli
from ift.errors import IftError
from ift.models import base
from ift.spec import Spec
from ift.tracking.registry import register


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFT_CACHE", str(tmp_path / "cache"))


def add_version(uri: str, folder: Path, *, seed: int, alias: str | None = "champion") -> Path:
    """A version of `films` with a model of its own."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("films")
    experiment = (
        found.experiment_id if found else client.create_experiment("films", f"file://{folder.parent}/mlruns")
    )
    run_id = client.create_run(experiment).info.run_id
    make_model(folder, seed=seed)
    register(run_id, folder, "films", uri=uri, description="", tags={}, alias=None)
    if alias:
        number = max(int(v.version) for v in client.search_model_versions("name='films'"))
        client.set_registered_model_alias("films", alias, str(number))
    return folder


def asked(tmp_path: Path, uri: str, source: str = "models:/films@champion") -> Spec:
    (tmp_path / "spec.yaml").write_text(
        f"name: films\nmodel: {{source: '{source}'}}\ntasks: [rotten_tomatoes]\ntracking: {{uri: '{uri}'}}\n"
    )
    return spec.load(tmp_path / "spec.yaml")


def test_an_alias_and_a_number_fetch_the_files_of_the_version(tmp_path: Path, uri: str) -> None:
    one = add_version(uri, tmp_path / "one", seed=1)
    two = add_version(uri, tmp_path / "two", seed=2, alias=None)
    assert base.digest(fetching.fetch("models:/films@champion", uri=uri)) == base.digest(one)
    assert base.digest(fetching.fetch("models:/films/2", uri=uri)) == base.digest(two)


def test_a_version_that_is_here_needs_no_mlflow_and_an_alias_does(tmp_path: Path, uri: str) -> None:
    add_version(uri, tmp_path / "one", seed=1)
    here = fetching.fetch("models:/films/1", uri=uri)
    (tmp_path / "store" / "mlflow.db").rename(tmp_path / "gone.db")
    assert fetching.fetch("models:/films/1", uri=uri) == here
    with pytest.raises(IftError, match=r"mlflow\.db"):
        fetching.fetch("models:/films@champion", uri=uri)
    with pytest.raises(IftError):  # another server's version of the same name is another model
        fetching.fetch("models:/films/1", uri=f"sqlite:///{tmp_path}/another.db")


def test_a_run_keeps_the_version_it_began_with_when_the_alias_moves(tmp_path: Path, uri: str) -> None:
    add_version(uri, tmp_path / "one", seed=1)
    folder, wanted = tmp_path / "run", asked(tmp_path, uri)
    begun = pipeline.claim(folder, wanted)
    assert begun.model.source == "models:/films/1"
    storage.write_json(folder / "prepare" / "manifest.json", {"hash": "4f1c"})
    add_version(uri, tmp_path / "two", seed=2)
    assert pipeline.claim(folder, wanted).model.source == "models:/films/1"
    assert spec.load(folder / "spec.yaml").model.source == "models:/films/1"  # and so `ift reproduce` has it
    assert pipeline.claim(tmp_path / "later", wanted).model.source == "models:/films/2"
    with pytest.raises(IftError, match=r"`model\.source`: 'models:/films/1' there, 'models:/films/2' here"):
        pipeline.claim(folder, asked(tmp_path, uri, "models:/films/2"))


def test_a_run_that_has_made_nothing_yet_takes_the_alias_as_it_stands(tmp_path: Path, uri: str) -> None:
    add_version(uri, tmp_path / "one", seed=1)
    folder, wanted = tmp_path / "run", asked(tmp_path, uri)
    pipeline.claim(folder, wanted)
    add_version(uri, tmp_path / "two", seed=2)
    assert pipeline.claim(folder, wanted).model.source == "models:/films/2"


def test_a_plan_needs_the_config_of_a_version_alone(tmp_path: Path, uri: str) -> None:
    model = add_version(uri, tmp_path / "one", seed=1)
    shaped = Path(fetching.shape_of(asked(tmp_path, uri).model, uri=uri).source)
    assert [file.name for file in shaped.iterdir() if file.is_file()] == ["config.json"]
    assert (shaped / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_a_run_folder_is_a_source_by_the_model_that_came_out_of_it(tmp_path: Path) -> None:
    make_model(tmp_path / "run" / "model")
    storage.write_json(tmp_path / "run" / "summary.json", {"run_dir": str(tmp_path / "run")})
    assert fetching.fetch(str(tmp_path / "run"), uri="") == tmp_path / "run" / "model"


def test_commands_take_a_registered_version(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    add_version(uri, tmp_path / "one", seed=1)
    shutil.rmtree(tmp_path / "one")
    runner = CliRunner(env={"COLUMNS": "160"})
    talked = runner.invoke(
        cli, ["chat", "models:/films@champion", "--max-new-tokens", "4"], input="good film\n"
    )
    assert talked.exit_code == 0, talked.output
    planned = runner.invoke(cli, ["plan", str(asked(tmp_path, uri) and tmp_path / "spec.yaml")])
    assert planned.exit_code == 0, planned.output
    assert "model    films-1: 28,992 parameters" in planned.output
    missing = runner.invoke(cli, ["chat", "models:/films@other"])
    assert isinstance(missing.exception, IftError)
    assert missing.exception.what == "`films` has no version `other`"
