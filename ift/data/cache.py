"""The cache of what takes long to make: folders under an address that says all that their content hangs on.

In:  the parts that the content is a function of, and what makes it.
Out: a folder that is whole, or not there.

    place = address(cache, "examples", "trec", task.model_dump(), digests)    # CACHE/examples/trec-3f9a…
    with made(place) as folder:          # a folder beside it, which becomes `place` when the block ends
        ...

A process may be killed at any time: what it left half done has another name and is never taken for a whole.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ift import storage
from ift.errors import IftError

_HOUSE = Path(__file__).resolve().parents[1]
# the code that decides what an example and its tokens are
_DECIDES = ("prompts", "tasks", "data", "models/base.py")
_LIBRARIES = ("tokenizers", "transformers", "jinja2", "pyarrow", "numpy")
_PART = ".part-"
_STALE = 24 * 3600  # seconds after which an unfinished folder is nobody's any more


def address(cache: Path, kind: str, name: str, *parts: Any) -> Path:
    """The folder for what is made of `parts` (JSON values) by this version of the code and of the libraries."""
    text = json.dumps([*parts, code_version()], sort_keys=True, ensure_ascii=False, default=str)
    return cache / kind / f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


@lru_cache(maxsize=1)
def code_version() -> str:
    """A digest of the code that words and tokenizes: a change to it makes everything anew."""
    return storage.code_digest(_HOUSE, _DECIDES, _LIBRARIES)


def digest_of(path: Path) -> str:
    """A digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_damaged(path: Path, error: Exception) -> None:
    """Raise `IftError` where what lies at `path` may be whole and has to stay: a disk may fail for a moment."""
    if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
        raise IftError(
            f"{path} cannot be read: {os.strerror(error.errno)}",
            hint="see that the cache (IFT_CACHE) can be read; run again",
        ) from error


@contextmanager
def made(place: Path) -> Iterator[Path]:
    """A new folder that becomes `place` when the block ends without an error.

    Where another process was quicker, its folder stays: the same address holds the same content.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = part_of(place.parent)
    folder.mkdir()
    try:
        yield folder
        try:
            os.rename(folder, place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def part_of(folder: Path) -> Path:
    """A name in `folder` for what is not whole yet. What killed processes left under such names long ago is removed."""
    for part in folder.glob(f"{_PART}*"):
        try:
            old = time.time() - part.stat().st_mtime > _STALE
        except FileNotFoundError:
            continue
        if old and part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        elif old:
            part.unlink(missing_ok=True)
    return folder / f"{_PART}{uuid.uuid4().hex}"
