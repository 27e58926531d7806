"""A data set of the Hugging Face hub, as Arrow files in the cache. Nothing that it brings is run.

In:  what a task's `source.hub` and `source.splits` say, and the cache folder.
Out: the Arrow files of each split, and the commit they were made from.

    fetch(Hub(id="CogComp/trec"), None, cache).files["test"]    # [.../hub/CogComp--trec/COMMIT/default/test/….arrow]

The `datasets` library makes these files, one folder a split, out of what `huggingface_hub` keeps in its own cache; both
find the address, the token and the proxies where they always do. Pictures and sounds stay as they are stored. In the
cache:

    hub/OWNER--NAME/refs/REVISION              the commit that a branch or tag meant last, for days without a network
    hub/OWNER--NAME/COMMIT/CONFIG/SPLIT/       a split's Arrow files; dataset_info.json is written last
    hub/OWNER--NAME/COMMIT/CONFIG@N/SPLIT/     its first N rows, of a data set that is streamed
"""

import contextlib
import gc
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ift import storage
from ift.data import cache as caches
from ift.errors import IftError
from ift.tasks.task import SPLITS, Hub

Progress = Callable[[int, int | None], None]
Status = Callable[[str], None]


def unheard(text: str) -> None:
    """A `Status` for nobody."""


CONVERTED = "refs/convert/parquet"
_PAUSES = (1, 3)  # seconds before the hub is asked again, where it does not say when
_LONGEST = 300.0  # seconds that it is waited for, where it does: its limits are of five minutes
_BATCH = 1000  # rows that are read from a stream at a time
_LET_GO = 10.0  # seconds that a stream's files may take to be closed
_TIMEOUT = 30  # seconds for an answer about a data set; downloads have huggingface_hub's own patience


@dataclass(frozen=True)
class Fetched:
    """The files of each of our splits, and the commit that they are of."""

    files: dict[str, list[Path]]
    commit: str


def fetch(
    hub: Hub,
    splits: Mapping[Any, str] | None,
    cache: Path,
    progress: Progress | None = None,
    status: Status = unheard,
) -> Fetched:
    """The Arrow files of the splits asked for, which may be train, validation and test; only these are downloaded.

    Raises `IftError` where the data set, its configuration or a split is not there or may not be read.
    """
    return _fetched(hub, splits, cache, progress, status)


def stream(
    hub: Hub,
    splits: Mapping[Any, str] | None,
    first: int,
    cache: Path,
    progress: Progress | None = None,
    status: Status = unheard,
) -> Fetched:
    """As `fetch`, but the first rows of each split alone: of a large data set only its beginning is downloaded."""
    return _fetched(hub, splits, cache, progress, status, first)


def _fetched(
    hub: Hub,
    splits: Mapping[Any, str] | None,
    cache: Path,
    progress: Progress | None,
    status: Status,
    first: int | None = None,
) -> Fetched:
    root = cache / "hub" / hub.id.replace("/", "--")
    note = root / "refs" / quote(hub.revision or "main", safe="")
    if _is_commit(hub.revision) and (found := _cached(root / str(hub.revision), hub, splits, first)):
        return found
    try:
        info = _ask(hub, status)
    except _Unreachable as error:
        commit = note.read_text(encoding="utf-8") if note.is_file() else ""
        if commit and (found := _cached(root / commit, hub, splits, first)):
            return found
        if first is None and (made := _made_by_others(hub, splits)):
            return made
        raise error.refusal from None
    # the commit and not the branch from here on: what is fetched is then of one piece, and can be named
    folder = root / info.sha
    found = _cached(folder, hub, splits, first) or _make(hub, info, splits, folder, progress, status, first)
    storage.write_text(note, found.commit)
    return found


def _is_commit(revision: str | None) -> bool:
    return bool(revision and re.fullmatch("[0-9a-f]{40}", revision))


# ── cache ──


def _cached(folder: Path, hub: Hub, splits: Mapping[Any, str] | None, first: int | None) -> Fetched | None:
    """What an earlier call made, if it is all there."""
    place = _place(folder, hub, first)
    if splits is None:
        wanted = storage.read_json(place / "splits.json")
        splits = wanted and {str(ours): str(theirs) for ours, theirs in wanted.items()}
    if not splits or not all((place / name / "dataset_info.json").is_file() for name in splits.values()):
        return None
    return Fetched({ours: _arrow_files(place / name) for ours, name in splits.items()}, folder.name)


def _place(folder: Path, hub: Hub, first: int | None) -> Path:
    return folder / (quote(hub.config or "default", safe=" ") + (f"@{first}" if first else ""))


def _arrow_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.arrow"))


def _made_by_others(hub: Hub, splits: Mapping[Any, str] | None) -> Fetched | None:
    """Without a network: what the `datasets` library once made for somebody else."""
    from datasets.packaged_modules.cache.cache import Cache

    if hub.revision not in (None, "main"):
        return None  # its cache does not say which branch a commit was on
    try:
        with _quiet():
            name = hub.id.rpartition("/")[2]
            builder = Cache(
                dataset_name=name, repo_id=hub.id, config_name=hub.config, version="auto", hash="auto"
            )
            names = _chosen(hub, list(builder.info.splits or ()), splits)
            made = {ours: builder.as_dataset(split=theirs).cache_files for ours, theirs in names.items()}
    except Exception:  # noqa: BLE001 -- it was the last resort: the caller says that the hub is out of reach
        return None
    return Fetched(
        {ours: [Path(f["filename"]) for f in files] for ours, files in made.items()}, str(builder.hash)
    )


# ── what the hub has ──


class _Unreachable(Exception):
    """No answer; `again` says whether there may be one later, `after` how many seconds later, where the hub says it."""

    def __init__(self, refusal: IftError, again: bool = True, after: float | None = None) -> None:
        self.refusal, self.again, self.after = refusal, again, after


def _address(name: str) -> str:
    """Without `hf://`, a folder of that name in the working directory would be read instead."""
    return f"hf://datasets/{name}"


def _ask(hub: Hub, status: Status) -> Any:
    """What the hub says of the data set: its commit, its files, whether it is gated."""
    for pause in _PAUSES:
        try:
            return _ask_once(hub)
        except _Unreachable as error:
            if not error.again:
                raise
            wait = pause if error.after is None else min(error.after, _LONGEST)
            status(f"{error.refusal.what}; asked again in {wait:.0f} s")
            time.sleep(wait)
    return _ask_once(hub)


def _seconds(headers: Mapping[str, str]) -> float | None:
    """How long a hub that has answered too often wants to be left alone; None where it does not say."""
    said = headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    left = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))  # "api";r=0;t=55
    return float(left[1]) if left else None


def _ask_once(hub: Hub) -> Any:
    import httpx2
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().dataset_info(hub.id, revision=hub.revision, timeout=_TIMEOUT)
    except OfflineModeIsEnabled:
        what = f"{hub.id} is not in the cache, and the hub is switched off"
        raise _Unreachable(IftError(what, hint="unset HF_HUB_OFFLINE to fetch it"), again=False) from None
    except httpx2.TransportError as error:
        what = f"{hub.id}: {constants.ENDPOINT} could not be reached: {str(error) or type(error).__name__}"
        raise _Unreachable(
            IftError(what, hint="check the network, HF_ENDPOINT and the proxy; try again")
        ) from None
    except GatedRepoError:
        raise _gated(hub) from None
    except RepositoryNotFoundError as error:
        raise _no_such(hub, error.response.status_code) from None
    except RevisionNotFoundError:
        raise IftError(
            f"{hub.id} has no revision {hub.revision}",
            wanted="a branch, a tag or a commit of it",
            hint=f"{CONVERTED} is made by the hub, and may be missing; leave `revision` out for `main`"
            if hub.revision == CONVERTED
            else f"see {constants.ENDPOINT}/datasets/{hub.id}/tree/main; leave `revision` out for `main`",
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            hint = "`hf auth login` with a token that may read it; HF_TOKEN, where set, goes before"
            raise IftError(f"{hub.id}: the hub did not accept the token (HTTP {status})", hint=hint) from None
        what = f"{hub.id}: the hub answered with HTTP {status}"
        if status == 429 or status >= 500:
            after = _seconds(error.response.headers)
            raise _Unreachable(IftError(what, hint="try again later"), after=after) from None
        raise IftError(what, wanted="an id such as CogComp/trec") from None


def _gated(hub: Hub) -> IftError:
    return IftError(
        f"{hub.id} is gated: it is read by those whom its authors have let in",
        hint=f"ask on https://huggingface.co/datasets/{hub.id}, then `hf auth login`",
    )


def _no_such(hub: Hub, status: int) -> IftError:
    # without a token, the hub answers alike for what is missing and what is private
    hint = "check the id" + (", which has an owner: OWNER/NAME" if "/" not in hub.id else "")
    return IftError(
        f"the hub has no data set {hub.id}, or it is private",
        wanted="the id of a data set, such as CogComp/trec",
        hint=f"{hint}; for a private one, `hf auth login`"
        + (" with a token that may read it" if status != 401 else ""),
    )


def _chosen(hub: Hub, there: list[str], splits: Mapping[Any, str] | None) -> dict[str, str]:
    """Our splits, and the names of theirs that serve."""
    named = f"{hub.id}/{hub.config}" if hub.config else hub.id
    if splits is None:
        if found := {name: name for name in SPLITS if name in there}:
            return found
        raise IftError(
            f"{named} has no split named {', '.join(SPLITS)}",
            wanted=f"`splits` to say which of its own serve: {', '.join(there)}",
            hint=f"splits: {{train: {there[0]}}}" if there else None,
        )
    if missing := [name for name in splits.values() if name not in there]:
        raise IftError(f"{named} has no split `{missing[0]}`", wanted=f"one of {', '.join(there)}")
    return dict(splits)


# ── making the files ──


def _make(
    hub: Hub,
    info: Any,
    splits: Mapping[Any, str] | None,
    folder: Path,
    progress: Progress | None,
    status: Status,
    first: int | None,
) -> Fetched:
    import datasets

    with _quiet(), _refusals(hub, info):
        # a folder of our own: in its usual one, the library would make do with what an older commit left there
        work = str(folder.parent / "work")
        builder = _converted(hub, info, work) if hub.revision == CONVERTED else _builder(hub, info, work)
        data = builder.config.data_files
        names = _chosen(hub, list(map(str, data)), splits)
        place = _place(folder, hub, first)
        if first is None:
            _download(info, [str(url) for name in names.values() for url in data[name]], progress)
        # what the authors noted is of all splits: as checks, the counts and sizes would fail for some
        builder.info.splits = builder.info.download_size = builder.info.size_in_bytes = None
        status(f"{hub.id}: " + ("converting it" if first is None else f"reading its first {first:,} rows"))
        for name in dict.fromkeys(names.values()):
            builder.config.data_files = datasets.data_files.DataFilesDict({name: data[name]})
            if first is None:
                builder.download_and_prepare(str(place / name), verification_mode="no_checks")
            elif not (place / name).is_dir():
                with caches.made(place / name) as making:
                    if not _write_first(builder.as_streaming_dataset(split=name), first, making, progress):
                        raise IftError(f"{hub.id}: its split `{name}` has no rows")
                _let_go()
    if splits is None:
        storage.write_json(place / "splits.json", names)
    return Fetched({ours: _arrow_files(place / name) for ours, name in names.items()}, str(info.sha))


def _write_first(rows: Any, first: int, folder: Path, progress: Progress | None) -> int:
    """The first rows as Arrow files, and how many files: a new one where the columns' types are not as before."""
    import pyarrow

    done = number = 0
    writer: Any = None
    schema: Any = None
    try:
        # as Arrow, what the files hold stays as it is: pictures are not opened
        for table in rows.take(first).with_format("arrow").iter(batch_size=min(first, _BATCH)):
            if table.schema != schema:
                if writer:
                    writer.close()
                schema = table.schema
                writer = pyarrow.ipc.new_stream(str(folder / f"{number:05}.arrow"), schema)
                number += 1
            writer.write_table(table)
            done += table.nbytes
            if progress:
                progress(done, None)
    finally:
        if writer:
            writer.close()
    storage.write_json(folder / "dataset_info.json", {"first": first})  # which `_cached` looks for
    return number


def _let_go() -> None:
    """Waits until nobody holds a file of a stream that was left half-read.

    The library leaves it in a cycle, and Arrow's threads may still be reading. Threads that do as Python ends abort the
    process, whatever it has done before (https://github.com/huggingface/datasets/issues/7566).
    """
    from huggingface_hub.hf_file_system import HfFileSystemFile

    deadline = time.monotonic() + _LET_GO
    gc.collect()
    while any(type(held) is HfFileSystemFile for held in gc.get_objects()) and time.monotonic() < deadline:
        time.sleep(0.05)
        gc.collect()


def _builder(hub: Hub, info: Any, work: str) -> Any:
    import datasets

    script = f"{info.id.rpartition('/')[2]}.py"
    if any(file.rfilename == script for file in info.siblings or ()):
        raise IftError(
            f"{hub.id} consists of a loading script, {script}; nothing that is downloaded is run",
            wanted="a data set of data files",
            hint=f"the hub's own conversion of it: `revision: {CONVERTED}`",
        )
    try:
        return datasets.load_dataset_builder(_address(info.id), hub.config, revision=info.sha, cache_dir=work)
    except ValueError:
        there = datasets.get_dataset_config_names(_address(info.id), revision=info.sha)
        if hub.config in there or (len(there) < 2 and not hub.config):
            raise
        raise _no_config(hub, there) from None


def _no_config(hub: Hub, there: list[str]) -> IftError:
    if hub.config:
        return IftError(f"{hub.id} has no configuration `{hub.config}`", wanted=f"one of {', '.join(there)}")
    revision = f", revision: {hub.revision}" if hub.revision else ""
    hint = f"hub: {{id: {hub.id}, config: {there[0]}{revision}}}"
    return IftError(f"{hub.id} has several configurations", wanted=f"one of {', '.join(there)}", hint=hint)


def _converted(hub: Hub, info: Any, work: str) -> Any:
    """The hub's own conversion has no settings: its files lie in CONFIG/SPLIT/0000.parquet."""
    import datasets

    found: dict[str, dict[str, list[str]]] = {}
    for file in sorted(file.rfilename for file in info.siblings or ()):
        if match := re.fullmatch(r"(.+)/(?:partial-)?([^/]+)/[^/]+\.parquet", file):
            url = f"{_address(info.id)}@{info.sha}/{file}"
            found.setdefault(match[1], {}).setdefault(match[2], []).append(url)
    config = hub.config or (next(iter(found)) if len(found) == 1 else "default")
    if config not in found:
        if not found:
            raise IftError(f"{hub.id} has no Parquet files in {CONVERTED}", hint="try it without `revision`")
        raise _no_config(hub, list(found))
    return datasets.load_dataset_builder("parquet", data_files=found[config], cache_dir=work)


def _download(info: Any, urls: list[str], progress: Progress | None) -> None:
    """The hub's files into huggingface_hub's cache, where the library finds them; it would not say how far it is."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    done = 0

    class Bar(tqdm):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **{**more, "disable": True})  # type: ignore[no-untyped-call]
            self.update(more.get("initial"))  # what an earlier try brought

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            done += int(n or 0)
            if progress:
                progress(done, None)
            return None

    start = f"{_address(info.id)}@{info.sha}/"
    for url in urls:
        if url.startswith(start):
            hf_hub_download(
                info.id, url.removeprefix(start), repo_type="dataset", revision=info.sha, tqdm_class=Bar
            )


@contextlib.contextmanager
def _refusals(hub: Hub, info: Any) -> Iterator[None]:
    """What goes wrong inside the libraries, in words for the user."""
    from huggingface_hub.errors import GatedRepoError

    try:
        yield
    except IftError:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever foreign files bring about in foreign libraries
        if isinstance(error, GatedRepoError) or (info.gated and "gated" in str(error)):
            raise _gated(hub) from None
        raise _broke(hub, error) from None


def _broke(hub: Hub, error: Exception) -> IftError:
    import httpx2
    from datasets.exceptions import DataFilesNotFoundError
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, DataFilesNotFoundError) or type(error).__name__ == "EmptyDatasetError":
        return IftError(
            f"{hub.id} has no data files that can be read", wanted="Parquet, JSON or CSV files in it"
        )
    if isinstance(error, ConnectionError | httpx2.TransportError | LocalEntryNotFoundError):
        what, hint = "could not be downloaded", "check the network and try again: what has come is kept"
    elif isinstance(error, OSError) and error.errno:
        what, hint = "could not be kept", "see that the caches can be written to and have room"
    else:
        what, hint = "could not be read", f"try `revision: {CONVERTED}`, the hub's own conversion"
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error  # the library's wrapper
    lines = [line for line in str(error).splitlines() if line.strip()]
    return IftError(f"{hub.id} {what}: {': '.join([type(error).__name__, *lines[:1]])}", hint=hint)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars and warnings: what matters of them is said by us."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    bars = not datasets.are_progress_bars_disabled(), not are_progress_bars_disabled()
    levels = datasets.logging.get_verbosity(), hub_logging.get_verbosity()
    datasets.disable_progress_bars()
    if bars[1]:
        disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            enable_progress_bars()
