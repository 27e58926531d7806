"""The process that reads from MLflow for ift.data.registered.

In:  a JSON object on standard input: MLflow's address, what is wanted of it, and a folder for the files.
Out: a JSON object on standard output: the digest, and where the files are if not in the folder; or why there are none.

    {"uri": "http://mlflow:5000", "dataset": "faq", "run": null, "artifact": null, "folder": "/cache/mlflow/.part-1"}
    {"digest": "9e1c2b7a"}
"""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ift import packages
from ift.errors import IftError, nearest
from ift.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ID = re.compile("d-[0-9a-f]{32}")
_SHOWN = 10  # of the names that there are


def main() -> None:
    """Answer the question on standard input."""
    asked = json.load(sys.stdin)
    try:
        answer = read(**asked)
    except IftError as error:
        answer = _refused(error)
    except Exception as error:  # noqa: BLE001 -- whatever goes wrong in MLflow and below it, the user hears of it
        answer = _refused(_broke(error, without_secrets(asked["uri"])))
    print(json.dumps(answer))


def _refused(error: IftError) -> dict[str, Any]:
    return {"refused": {"what": error.what, "wanted": error.wanted, "hint": error.hint}}


def read(uri: str, folder: str, dataset: str | None, run: str | None, artifact: str | None) -> dict[str, Any]:
    """Put the files into the folder, or say where else they are; and the digest by which MLflow knows them."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    client, at = mlflow.MlflowClient(uri), f"MLflow at {without_secrets(uri)}"
    if run is None:
        return _registered(client, str(dataset), Path(folder), at)
    found = _or_none(client.get_run, run)
    if found is None:
        raise IftError(f"{at} has no run {run}", wanted="a run's id, 32 hexadecimal digits")
    if artifact is not None:
        _artifacts(client, run, artifact, Path(folder))
        return {"digest": None}
    return _logged(client, found, str(dataset), Path(folder), at)


def _or_none(call: Any, *values: Any) -> Any:
    """What `call` gives; None where MLflow has no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*values)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


# ── registered data sets ──


def _registered(client: "MlflowClient", name: str, folder: Path, at: str) -> dict[str, Any]:
    """The records of a data set, one a line."""
    dataset = _or_none(client.get_dataset, name) if _ID.fullmatch(name) else _named(client, name, at)
    if dataset is None:
        raise IftError(f"{at} has no data set {name}", wanted="a data set's name or id")
    if not dataset.records:
        raise IftError(f"the data set {name} has no records yet", wanted="one with records")
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for record in dataset.records:
            row = {"inputs": record.inputs, "expectations": record.expectations, "outputs": record.outputs}
            row = {key: value for key, value in {**row, "tags": record.tags}.items() if value is not None}
            file.write(json.dumps(row, ensure_ascii=True) + "\n")
    return {"digest": dataset.digest}


def _named(client: "MlflowClient", name: str, at: str) -> Any:
    quote = '"' if "'" in name else "'"
    found = [
        d for d in client.search_datasets(filter_string=f"name = {quote}{name}{quote}") if d.name == name
    ]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(sorted(d.dataset_id for d in found)[:_SHOWN])
        raise IftError(f"{at} has {len(found)} data sets named {name}", wanted=f"an id: one of {ids}")
    names = sorted({d.name for d in client.search_datasets(max_results=1000)})
    raise IftError(f"{at} has no data set named {name}", wanted=_one_of(names), hint=nearest(name, names))


def _one_of(names: list[str]) -> str:
    if not names:
        return "one that is there; there is none"
    return f"one of {', '.join(names[:_SHOWN])}" + (", …" if len(names) > _SHOWN else "")


# ── what a run has ──


def _logged(client: "MlflowClient", run: Any, wanted: str, folder: Path, at: str) -> dict[str, Any]:
    """The files that a data set which a run logged was made of."""
    import mlflow.data

    there = {(i.dataset.name, i.dataset.digest): i.dataset for i in run.inputs.dataset_inputs}
    found = [dataset for names, dataset in there.items() if wanted in names]
    named = f"the data set {wanted} of the run {run.info.run_id}"
    if not found:
        names = sorted({name for name, _ in there})
        what = f"the run {run.info.run_id} has logged no data set named {wanted}"
        raise IftError(what, wanted=_one_of(names), hint=nearest(wanted, names))
    if len(found) > 1:
        digests = ", ".join(sorted(dataset.digest for dataset in found))
        raise IftError(f"{named} is one of {len(found)} of that name", wanted=f"a digest: one of {digests}")
    (dataset,) = found
    digest, kind = {"digest": dataset.digest}, dataset.source_type
    if kind == "mlflow_evaluation_dataset":  # of which `get_source` does not know
        return _registered(client, json.loads(dataset.source)["dataset_id"], folder, at)
    source = mlflow.data.get_source(dataset)
    of = source.to_dict()
    if kind == "hugging_face":
        if of["data_dir"] or of["data_files"]:
            raise IftError(f"{named} names files inside {of['path']}", hint="name these with `source.hub`")
        hub = {"id": of["path"], "config": of["config_name"], "revision": of["revision"]}
        split = of["split"] if of["split"] not in (None, "None") else None
        return {**digest, "hub": hub, "split": split}
    if kind == "s3":
        return {**digest, "s3": of["uri"]}
    if kind == "local":
        from mlflow.utils.file_utils import local_file_uri_to_path

        path = Path(local_file_uri_to_path(of["uri"]))  # type: ignore[no-untyped-call]
        if not path.exists():
            raise IftError(f"{named} was read from {path}, which is not on this machine")
        return {**digest, "local": str(path.absolute())}
    if not hasattr(source, "load") or kind in ("code", "spark", "delta_table", "databricks-uc-table"):
        raise IftError(
            f"{named} was not read from files (its source is of the kind `{kind}`)",
            wanted="one that was logged with its source: mlflow.data.from_pandas(frame, source=PATH)",
        )
    load: Any = source.load
    load(dst_path=str(folder))
    return digest


def _artifacts(client: "MlflowClient", run: str, path: str, folder: Path) -> None:
    """The files that a path, which may name a folder or hold `*`, stands for."""
    path = path.strip("/")
    start = path.partition("*")[0].rpartition("/")[0]
    there = client.list_artifacts(run, start or None)
    if "*" in path:
        match = packages.matcher(path).fullmatch
        found = [file for file in _deep(client, run, there) if match(file.path)]
    else:
        found = list(_deep(client, run, [entry for entry in there if entry.path == path]))
    if not found:
        names = sorted(entry.path for entry in there)
        what = f"the run {run} has no artefact {path}"
        raise IftError(what, wanted=_one_of(names), hint=nearest(path, names))
    for file in found:
        place = (folder / file.path).resolve().parent  # MLflow would put all files side by side
        if not place.is_relative_to(folder.resolve()):
            raise IftError(f"the run {run} has an artefact {file.path!r}, which is no path")
        place.mkdir(parents=True, exist_ok=True)
        got = Path(client.download_artifacts(run, file.path, str(place)))
        if file.file_size is not None and got.stat().st_size != file.file_size:
            what = f"{file.path} of the run {run} came with {got.stat().st_size} of {file.file_size} bytes"
            raise IftError(what, hint="try again")


def _deep(client: "MlflowClient", run: str, entries: list[Any]) -> list[Any]:
    files: list[Any] = []
    for entry in entries:
        files += _deep(client, run, client.list_artifacts(run, entry.path)) if entry.is_dir else [entry]
    return files


# ── refusals ──


def _broke(error: Exception, at: str) -> IftError:
    """What went wrong on the way, in words for the user."""
    text = without_secrets(" ".join(str(error).split())) or type(error).__name__
    status = re.search(r"error code (\d{3})|too many (\d{3}) error|HTTP (\d{3})", text)
    code = next((int(group) for group in status.groups() if group), 0) if status else 0
    if code in (401, 403):
        hint = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return IftError(f"MLflow at {at} refused access (HTTP {code})", hint=hint)
    if code:
        return IftError(f"MLflow at {at} answered with HTTP {code}: {text[:200]}", hint="check the address")
    if re.search("timed out|timeout", text, re.I):
        return IftError(
            f"MLflow at {at} did not answer in time", hint="try again later, or check the address"
        )
    if re.search("max retries|connection|getaddrinfo|name resolution", text, re.I):
        return IftError(f"MLflow at {at} could not be reached", hint="check the address and the network")
    return IftError(f"MLflow at {at} could not be read: {type(error).__name__}: {text[:300]}")


if __name__ == "__main__":
    main()
