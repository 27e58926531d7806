"""Run folders: atomic files, manifests that are written last, room on disk.

In:  a folder and plain values.
Out: files that are either whole or not there.

    write_json(run / "train" / "manifest.json", {"steps": 40})    # the stage is complete from here on
    read_json(run / "train" / "manifest.json")                    # None where it is not
"""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from ift.errors import IftError

GIB = 2**30


def cache_dir() -> Path:
    """Where models and packages are kept between runs: `IFT_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("IFT_CACHE") or platformdirs.user_cache_dir("ift"))


def write_text(path: Path, text: str) -> None:
    """Write all of `text` or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`value` as indented JSON; NaN and infinity, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None where there is no such file."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value


def json_line(row: Mapping[str, Any]) -> str:
    """`row` as one line of a JSONL file."""
    return json.dumps(_finite(row), ensure_ascii=False) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All of `rows`, one a line, or nothing."""
    write_text(path, "".join(map(json_line, rows)))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects in `path`, one a line; an empty list where there is no such file.

    A last line without its end is left out: who wrote it was killed, or is still at it.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip() and line.endswith("\n")]


def drop_half_line(path: Path) -> None:
    """Cut what a killed process left of the last line, so that more lines can follow."""
    if path.exists():
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            os.truncate(path, whole.rfind(b"\n") + 1)


def value_digest(value: Any) -> str:
    """The SHA-256 of what JSON can hold, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def code_digest(house: Path, sections: Iterable[str], libraries: Iterable[str]) -> str:
    """A digest of the Python files in these folders of `house`, or of these files, and of these libraries' versions.

    What such code makes is kept under it: a change to the code makes everything anew.
    """
    # of Python count its random draws and its tables of Unicode
    digest = hashlib.sha256(f"python {sys.version_info[:2]}\n".encode())
    for library in libraries:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    for section in sections:
        place = house / section
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = path.relative_to(house)
            if "library" not in name.parts:  # hooks of tasks: they count with their task
                digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def require_room(folder: Path, needed: int, what: str) -> None:
    """Raise `IftError` where the disk that holds `folder` has fewer than `needed` bytes free."""
    existing = next(p for p in [folder, *folder.parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise IftError(
            f"{existing} has {free / GIB:.1f} GiB free; {what} takes {needed / GIB:.1f} GiB",
            wanted=f"{(needed - free) / GIB:.1f} GiB more room",
            hint="free some, or choose another disk with --output DIR",
        )
