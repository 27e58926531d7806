"""`ift report`: the pages of runs, written from what lies in their folders.

In:  the folders of runs that are finished.
Out: `report.html` in the folder of one run, or one page that compares several.

    report([Path("runs/full"), Path("runs/lora")], output=None)    # comparison.html, in this folder

Nothing is computed again but what the pages alone need: the predictions, metrics and manifests are read as they are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ift import spec as specs
from ift import storage
from ift.errors import IftError
from ift.spec import Spec
from ift.summary import STAGES, Manifest, done, predictions_of, shown, summary_of
from ift.tracking.record import Record

COMPARISON = "comparison.html"


def report(folders: Sequence[Path], output: Path | None) -> None:
    """Write the page of one run, or of several beside each other; print where it is and a line a run.

    Raises `IftError` for what is no run, or is not finished.
    """
    from ift.tracking import comparison
    from ift.tracking.report import headline, write_report

    records = {folder: read(folder) for folder in dict.fromkeys(map(Path.absolute, folders))}
    if output and output.is_dir():
        raise IftError(
            f"{output} is a folder", wanted="a file for the page", hint=f"--output {output / COMPARISON}"
        )
    names = _names(records)
    if len(records) == 1:
        ((folder, record),) = records.items()
        path = (output or folder / "report.html").absolute()
    else:
        path = (output or Path(COMPARISON)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(records) == 1:
        write_report(path, record)
    else:
        comparison.write_comparison(path, {names[folder]: record for folder, record in records.items()})
    for i, (folder, record) in enumerate(records.items()):
        of = f"{comparison.letter(i)} " if len(records) > 1 else ""
        print(f"{of}{names[folder]}: {headline(record.summary)}")
    print(f"\nreport      {path}")


def read(folder: Path) -> Record:
    """The finished run in `folder`. Raises `IftError` where there is none."""
    if not folder.exists():
        raise IftError(
            f"there is no folder {folder}",
            wanted="the folder of a run that is finished",
            hint="`ift run SPEC` makes one, in runs/NAME unless --output says otherwise",
        )
    if not (folder / "spec.yaml").is_file():
        raise IftError(
            f"{folder} is no run's folder: it has no spec.yaml",
            wanted="the folder of a run that is finished, such as runs/quickstart",
        )
    missing = [stage for stage in STAGES[:-1] if not done(folder, stage)]
    summary = storage.read_json(folder / "summary.json")
    if summary is None and missing:
        raise IftError(
            f"the run in {folder} is not finished: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} to do",
            wanted="a run with a summary.json",
            hint=f"`ift run {folder / 'spec.yaml'} --output {folder}` goes on with it",
        )
    own = _chosen(folder, summary or {})
    spec = specs.load(own / "spec.yaml")
    return record_of(spec, own, summary_of(spec, own) if summary is None else summary)


def _chosen(folder: Path, summary: Manifest) -> Path:
    """The run that was chosen: a second one lies inside the first, wherever that was moved."""
    for attempt in summary.get("attempts", [])[1:]:
        inner = folder / Path(attempt["folder"]).name
        if attempt["chosen"] and inner.is_dir():
            return inner
    return folder


def record_of(spec: Spec, folder: Path, summary: Manifest) -> Record:
    """What the pages need of the run in `folder`, whose stages are done."""
    spec = shown(spec)
    return Record(
        summary=summary,
        metrics=storage.read_jsonl(folder / "metrics.jsonl"),
        validation=storage.read_jsonl(folder / "validation.jsonl"),
        before=_predictions(folder, "baseline"),
        after=_predictions(folder, "evaluate"),
        lengths=stream_lengths(folder / "prepare" / "stream"),
        settings=dict(specs.flatten(spec.model_dump(by_alias=True, mode="json"))),
        spec=specs.dump(spec),
    )


def _predictions(folder: Path, stage: str) -> list[Manifest]:
    """None where somebody made room: the page is worth having without them, and says so."""
    return predictions_of(folder, stage) if (folder / stage / "predictions.parquet").is_file() else []


def stream_lengths(folder: Path) -> dict[str, dict[int, int]]:
    """Of each task, how many instructions of the stream have so many tokens; a row group at a time."""
    import pyarrow.parquet as pq

    counts: dict[str, Counter[int]] = {}
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["lengths", "tasks"])
            lengths, tasks = (
                table[name].combine_chunks().flatten().to_pylist() for name in table.column_names
            )
            for (task, length), count in Counter(zip(tasks, lengths, strict=True)).items():
                counts.setdefault(task, Counter())[length] += count
    return {task: dict(of_task) for task, of_task in counts.items()}


def _names(records: Mapping[Path, Record]) -> dict[Path, str]:
    """What each run is called: by its spec, or by its folder where two specs have one name."""
    for name in (
        lambda folder: str(records[folder].summary.get("name") or folder.name),
        lambda folder: folder.name,
        str,
    ):
        names = {folder: name(folder) for folder in records}
        if len(set(names.values())) == len(names):
            break
    return names
