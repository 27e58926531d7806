"""Versions in MLflow's model registry: an ordinary Hugging Face folder each, with what its run measured.

In:  a run's id, the exported model's folder, its card and tags; later a name and a version, or an alias.
Out: a version of the registered model, with the alias `candidate`; later the version, its files, its results.

    number = register(tracker.run_id, run_dir / "model", "reviews", uri="sqlite:////data/mlflow.db",
                      description=describe(summary), tags={"ift.run_fingerprint": "4f1c"})
    # '1'; a second call with the same fingerprint returns the same version
    registry = Registry("sqlite:////data/mlflow.db")
    registry.summary(registry.version("reviews", "@candidate"))["gate"]["verdict"]    # 'pass'
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ift import storage
from ift.errors import IftError, nearest
from ift.redaction import without_secrets
from ift.tracking.card import fit
from ift.tracking.client import mlflow_client, patience, reason
from ift.tracking.values import TAG_LENGTH

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINGERPRINT = "ift.run_fingerprint"
CANDIDATE = "candidate"


def register(
    run_id: str | None,
    model_dir: Path,
    name: str,
    *,
    uri: str,
    description: str,
    tags: Mapping[str, str],
    alias: str | None = CANDIDATE,
    status: Callable[[str], None] = lambda text: None,
) -> str:
    """Upload the folder to the run, make it a version of `name`, and point `alias` at it, if there is one.

    `status` hears of each file before it goes.

    Raises `IftError` where MLflow does not answer or refuses.
    """
    folder = Path(model_dir)
    sizes = {file: file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    if not sizes:
        raise IftError(f"there is no model to register in {folder}", wanted="a folder with model files")
    if not run_id:
        raise IftError("the model cannot be registered: its run is not in MLflow yet", hint="run it again")

    # One file's upload may take a second a MiB: a server copies it on to its artefact store before it answers.
    patient = patience(60 + max(sizes.values()) / 2**20, retries=1)
    with _plain_errors(uri, name):
        client = mlflow_client(uri)
        client.get_run(run_id)  # where nothing answers, this says so soon
        with patient:
            version = _registered(client, name, tags.get(FINGERPRINT))
            if version is None:
                _upload(client, run_id, folder, sizes, status)
                _ensure_model(client, name)
                # another process may have registered it during the upload
                version = (
                    _registered(client, name, tags.get(FINGERPRINT))
                    or client.create_model_version(
                        name,
                        source=f"runs:/{run_id}/model",
                        run_id=run_id,
                        tags={key: str(value)[:TAG_LENGTH] for key, value in tags.items()},
                        description=fit(description),
                    ).version
                )
            if alias:
                holder = client.get_registered_model(name).aliases.get(alias)
                if holder is None or int(holder) < int(version):  # never back from a newer version
                    client.set_registered_model_alias(name, alias, str(version))
    return str(version)


def _upload(
    client: "MlflowClient",
    run_id: str,
    folder: Path,
    sizes: Mapping[Path, int],
    status: Callable[[str], None],
) -> None:
    started, sent, total = time.monotonic(), 0, sum(sizes.values())
    for file, size in sizes.items():
        spent = (time.monotonic() - started) / 60
        status(
            f"uploading {file.name} ({size / storage.GIB:.2f} GiB) to MLflow; {sent / storage.GIB:.2f} of "
            f"{total / storage.GIB:.2f} GiB are there after {spent:.0f} min"
        )
        within = Path("model") / file.relative_to(folder).parent
        client.log_artifact(run_id, str(file), within.as_posix())
        sent += size


def _registered(client: "MlflowClient", name: str, fingerprint: str | None) -> Any:
    """The newest version of `name` with this fingerprint, if there is one."""
    if not fingerprint:
        return None
    found = client.search_model_versions(f"tags.`{FINGERPRINT}` = '{fingerprint}'")
    return max((int(entry.version) for entry in found if entry.name == name), default=None)


def _ensure_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _plain_errors(uri: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        address = without_secrets(uri)
        raise IftError(
            f"the model could not be registered as '{name}' in MLflow at {address}: {reason(error, 60)}",
            hint="once MLflow takes it, run the same spec again: it goes on with this step",
        ) from error


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    run_id: str | None
    source: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    description: str
    created: float  # unix seconds

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


class Unreadable(IftError):
    """A version's file is there, and is not what it should be; the server is not to blame."""


class Registry:
    """What an MLflow server, or database, has registered. Raises `IftError` where it does not answer or has it not."""

    def __init__(self, uri: str, *, timeout: float = 20.0) -> None:
        self.uri, self.address = uri, without_secrets(uri)
        with self.errors("reached"):
            self.client = mlflow_client(uri, timeout)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """What goes wrong in the block, in plain words: MLflow could not be `what`."""
        try:
            yield
        except IftError:
            raise
        except Exception as error:
            raise IftError(
                f"MLflow at {self.address} could not be {what}: {reason(error, 20)}",
                hint="--uri, or MLFLOW_TRACKING_URI, says where it is",
            ) from error

    def names(self) -> list[str]:
        """All registered models."""
        from mlflow.store.entities import PagedList

        found: list[str] = []
        token: str | None = None
        with self.errors("read"):
            while True:
                page: PagedList[Any] = self.client.search_registered_models(page_token=token)
                found += [str(model.name) for model in page]
                if not (token := page.token):
                    return sorted(found)

    def model(self, name: str) -> Any:
        """MLflow's registered model: `aliases`, `tags`, `description`."""
        from mlflow.exceptions import MlflowException

        with self.errors("read"):
            try:
                return self.client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        names = self.names()
        raise IftError(
            f"there is no model `{name}` in MLflow at {self.address}",
            wanted="one of " + ", ".join(names[:20]) if names else "a run that has registered its model",
            hint=nearest(name, names),
        )

    def aliases(self, name: str) -> dict[str, int]:
        """Which version each alias points at."""
        return {alias: int(number) for alias, number in self.model(name).aliases.items()}

    def versions(self, name: str) -> list[Version]:
        """All versions, the newest first."""
        aliases = self.aliases(name)
        with self.errors("read"):
            quoted = name.replace("'", "\\'")
            found = list(self.client.search_model_versions(f"name='{quoted}'", max_results=1000))
        return sorted((_version(entry, aliases) for entry in found), key=lambda version: -version.number)

    def version(self, name: str, which: str) -> Version:
        """Version `which` of a model: a number, or an alias with or without `@`."""
        versions = self.versions(name)
        aliases = {alias: version.number for version in versions for alias in version.aliases}
        asked = which.removeprefix("@")
        number = int(asked) if asked.isdecimal() else aliases.get(asked)
        for version in versions:
            if version.number == number:
                return version
        numbers = ", ".join(str(version.number) for version in versions[:20]) or "none: it has no version"
        raise IftError(
            f"`{name}` has no version `{which}`",
            wanted=f"one of {numbers}" + (f"; or an alias: {', '.join(aliases)}" if aliases else ""),
            hint=f"`ift models show {name}`",
        )

    def named(self, reference: str) -> Version:
        """The version of a reference as people write it: `reviews@champion`, `reviews/3`, `models:/reviews/3`."""
        text = reference.removeprefix("models:/")
        for mark in ("@", "/"):
            name, found, which = text.rpartition(mark)
            if found and name and which:
                return self.version(name, which)
        raise IftError(
            f"`{reference}` names no version of a model",
            wanted="NAME@ALIAS or NAME/NUMBER, such as reviews@champion",
        )

    def summary(self, version: Version) -> dict[str, Any] | None:
        """What its run measured (`summary.json`); None where that is not in the registry. Raises `Unreadable`."""
        name = "model/ift.json"
        with tempfile.TemporaryDirectory() as scratch:
            path = self._download(version, name, Path(scratch))
            with _readable(version, name):
                found = storage.read_json(path) if path else None
                if not isinstance(found, dict | None):
                    raise ValueError("no JSON object")
                return found

    def predictions(self, version: Version, stage: str) -> list[dict[str, Any]] | None:
        """What the stage `baseline` or `evaluate` of its run predicted; None where that is not in MLflow. Raises
        `Unreadable`."""
        import pyarrow.parquet as pq

        name = f"{stage}/predictions.parquet"
        with tempfile.TemporaryDirectory() as scratch:
            path = self._download(version, name, Path(scratch))
            with _readable(version, name):
                return pq.read_table(path).to_pylist() if path else None

    def elsewhere(self, version: Version) -> str | None:
        """What MLflow serves of it where that is not its run's `model`, which was measured; else None.

        A version that was made in MLflow's pages or by its client may name any run and any files.
        """
        if not version.run_id or version.source == f"runs:/{version.run_id}/model":
            return None
        with self.errors("read"):
            # of a copy of a version, what that one serves
            served = self.client.get_model_version_download_uri(version.name, str(version.number))
            if self.run_is_active(version.run_id):
                stored = f"{self.client.get_run(version.run_id).info.artifact_uri}/model"
                own = (stored, f"runs:/{version.run_id}/model")
                if _as_place(served) in map(_as_place, own):
                    return None
        return str(without_secrets(served))

    def files(self, version: Version) -> dict[str, int]:
        """The files of its model that are there, with their bytes; none where its run is gone, and none where it
        serves others than its run's."""
        if not version.run_id or self.elsewhere(version):
            return {}
        found: dict[str, int] = {}
        with self.errors("read"):
            left = ["model"]
            while left:
                for entry in self._artifacts(version.run_id, left.pop()):
                    if entry.is_dir:
                        left.append(entry.path)
                    else:
                        found[entry.path.removeprefix("model/")] = int(entry.file_size or 0)
        return found

    def pull(self, version: Version, folder: Path) -> None:
        """Fetch its model into `folder`, which must not exist or be empty; whole or not at all."""
        if folder.exists() and any(folder.iterdir()):
            raise IftError(
                f"{folder} is not empty", wanted="a folder for the model's files", hint="name a new one"
            )
        if served := self.elsewhere(version):
            raise IftError(
                f"{version} serves {served}, which is not the model of its run {version.run_id}",
                wanted=f"a version of runs:/{version.run_id}/model, as `ift run` registers it",
                hint=f"`ift models show {version.name}` lists the other versions",
            )
        size = max(self.files(version).values(), default=0)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            with patience(60 + size / 2**20):
                found = self._download(version, "model", Path(scratch))
            if found is None:
                raise IftError(
                    f"the files of {version} are not in MLflow at {self.address}",
                    wanted="the artefact `model` of its run, which was deleted or never came",
                    hint=f"`ift models show {version.name}` lists the other versions",
                )
            if folder.exists():
                folder.rmdir()
            found.rename(folder)

    def params(self, version: Version) -> dict[str, str]:
        """The params of its run: the resolved spec by dotted keys. Empty where the run is gone."""
        if not version.run_id or not self.run_is_active(version.run_id):
            return {}
        with self.errors("read"):
            params = self.client.get_run(version.run_id).data.params
        return {key: value for key, value in params.items() if not key.startswith("ift.move.")}

    def losses(self, version: Version) -> dict[int, float]:
        """The training loss of each step of its run."""
        if not version.run_id:
            return {}
        with self.errors("read"):
            history = self.client.get_metric_history(version.run_id, "train/loss")
        return {int(metric.step): float(metric.value) for metric in history}

    def run_is_active(self, run_id: str) -> bool:
        """Whether the run is there and was not deleted."""
        from mlflow.exceptions import MlflowException

        with self.errors("read"):
            try:
                return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def artifact(self, version: Version, path: str, folder: Path) -> Path:
        """A file of its run, fetched into `folder`. Raises `IftError` where it is not there."""
        found = self._download(version, path, folder)
        if found is None:
            raise IftError(
                f"the run of {version} has left no {path} in MLflow",
                wanted="a version that `ift run` registered, whose run's artefacts are there",
            )
        return found

    def _artifacts(self, run_id: str, folder: str | None) -> Any:
        """What MLflow lists in a folder of a run; nothing where the run was purged."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.list_artifacts(run_id, folder)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return []
            raise

    def _download(self, version: Version, path: str, folder: Path) -> Path | None:
        if not version.run_id:
            return None
        with self.errors("read"):
            above = path.rpartition("/")[0]
            there = self._artifacts(version.run_id, above or None)
            if not any(entry.path == path for entry in there):
                return None
            return Path(self.client.download_artifacts(version.run_id, path, str(folder)))


def _as_place(uri: str) -> str:
    return uri.removeprefix("file://").rstrip("/")


@contextmanager
def _readable(version: Version, name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise Unreadable(f"{name} of {version} cannot be read: {str(error)[:200]}") from error


def _version(entry: Any, aliases: Mapping[str, int]) -> Version:
    number = int(entry.version)
    return Version(
        name=str(entry.name),
        number=number,
        run_id=entry.run_id or None,
        source=str(entry.source),
        tags=dict(entry.tags or {}),
        aliases=tuple(sorted(alias for alias, held in aliases.items() if held == number)),
        description=entry.description or "",
        created=int(entry.creation_timestamp or 0) / 1000,
    )
