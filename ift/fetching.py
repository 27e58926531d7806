"""A model as people name it -> a local folder: a run's, a version in MLflow's registry, or any other source.

In:  a run's folder, `models:/NAME@ALIAS` or `models:/NAME/NUMBER`, or what models/base.py resolves.
Out: a local folder with the model's files; of a version, which one it is.

    fetch("runs/films", uri="sqlite:///mlflow.db")                   # runs/films/model
    fetch("models:/reviews@champion", uri="http://mlflow:5000")      # ~/.cache/ift/models/reviews-7-4f1c…

An alias moves. A run that has begun keeps the version that it began with (`pinned`), or its later stages would go on
with another model than its first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ift import storage
from ift.errors import IftError
from ift.models import base, quantised
from ift.spec import ModelSpec, Spec

if TYPE_CHECKING:
    from ift.tracking.registry import Registry

REGISTERED = "models:/"


def fetch(
    source: str,
    *,
    uri: str,
    revision: str | None = None,
    sha256: str | None = None,
    trust_remote_code: bool = False,
    progress: base.Progress | None = None,
    notify: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """The local folder that holds the model of `source`; `uri` says where MLflow is, and is asked for versions alone.

    Raises `IftError` where there is no such model, or it cannot be reached.
    """
    if source.startswith(REGISTERED):
        return base.checked(_registered(source, uri, notify))
    if made := base.of_run(source):
        return base.checked(made)
    return base.resolve(
        source,
        cache=storage.cache_dir(),
        revision=revision,
        sha256=sha256,
        trust_remote_code=trust_remote_code,
        progress=progress,
        notify=notify,
        note=note,
    )


def fetch_model(
    model: ModelSpec,
    *,
    uri: str,
    progress: base.Progress | None = None,
    notify: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] | None = None,
    to_train: bool = False,
) -> Path:
    """`fetch` of a spec's `model`, with its chat template where the spec has one; `to_train` with ordinary weights."""
    folder = fetch(**model.place, uri=uri, progress=progress, notify=notify, note=note)
    if to_train:
        folder = quantised.ordinary(folder, model.source, cache=storage.cache_dir(), notify=notify)
    if not (model.chat_template or model.chat_template_options):
        return folder
    return base.with_chat_template(folder, model.chat_template, model.chat_template_options)


def _registered(source: str, uri: str, notify: Callable[[str], None]) -> Path:
    """A version's files, fetched once. One that is here and is named by its number needs no MLflow that answers."""
    place, server = storage.cache_dir() / "models", storage.value_digest(uri)[:8]
    try:
        registry = _registry(uri)
        version = registry.named(source)
    except IftError:
        name, _, number = source.removeprefix(REGISTERED).rpartition("/")
        here = list(place.glob(f"{name}-{number}-{server}-*")) if number.isdecimal() else []
        if len(here) != 1:
            raise
        return here[0]
    folder = place / f"{version.name}-{version.number}-{server}-{version.run_id}"
    if not folder.exists():
        notify(f"fetching {version} from MLflow")
        registry.pull(version, folder)
    return folder


def shape_of(model: ModelSpec, *, uri: str) -> ModelSpec:
    """`model` for who needs its config alone: of a version in MLflow a folder with no other file in it."""
    if not model.source.startswith(REGISTERED):
        return model
    registry = _registry(uri)
    version = registry.named(model.source)
    folder = storage.cache_dir() / "shapes" / f"{version.run_id}" / f"{version.name}-{version.number}"
    if not (folder / "config.json").is_file():
        file = registry.artifact(version, "model/config.json", folder)
        file.replace(folder / "config.json")
    return model.model_copy(update={"source": str(folder)})


def pinned(spec: Spec, folder: Path) -> Spec:
    """`spec` with a version's number in the place of its alias: the one that the run in `folder` has begun with.

    `folder/model.json` holds what was asked for and what that was; it counts once the run has prepared its stream.
    Raises `IftError` where MLflow has to be asked and does not answer.
    """
    source = spec.model.source
    if not source.startswith(REGISTERED) or "@" not in source:
        return spec
    begun = storage.read_json(folder / "model.json") or {}
    if begun.get("asked") != source or not (folder / "prepare" / "manifest.json").is_file():
        begun = {"asked": source, "version": str(_registry(spec.tracking.uri).named(source))}
        storage.write_json(folder / "model.json", begun)
    exact = spec.model.model_copy(update={"source": f"{REGISTERED}{begun['version']}"})
    return spec.model_copy(update={"model": exact})


def _registry(uri: str) -> "Registry":
    from ift.tracking.client import existing_uri
    from ift.tracking.registry import Registry

    return Registry(existing_uri(uri, Path.cwd()))
