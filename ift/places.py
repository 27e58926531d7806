"""Local and S3 paths behind one small interface: what the nodes of a cluster share.

In:  a folder that all nodes see, or `s3://BUCKET/PREFIX`.
Out: files in it that are either whole or not there.

    place = Place("s3://models/ift")
    place.write("step-40/rank-0.json", [b'{"bytes": 12}'])
    place.read("step-40/rank-0.json")       # b'{"bytes": 12}'
    place.files("step-40")                  # {"rank-0.json": 13}

Keys, profile and certificates are found where AWS's own library finds them; another store than AWS's is named by
`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`.
"""

import errno
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ift.errors import IftError

SCHEME = "s3://"
Gather = Callable[[Any], list[Any]]  # what every rank gave, in the order of ranks
_ATTEMPTS = 5
_CONNECT = 10.0  # seconds
_CHUNK = 8 << 20
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT|TOKEN|UNRECOGNIZED_CLIENT|HTTP status 40[13]"
)


def alone(value: Any) -> list[Any]:
    """`Gather` where there is but one rank."""
    return [value]


class Place:
    """A folder or a prefix of a bucket; names are relative to it. `str()` of it is what the user wrote."""

    def __init__(self, url: str | Path) -> None:
        from pyarrow import fs

        self._url, self._bucket = str(url), ""
        if self._url.startswith(SCHEME):
            self._root = self._url.removeprefix(SCHEME).rstrip("/")
            self._bucket = self._root.partition("/")[0]
            if not self._bucket:
                raise IftError(f"{self._url!r} names no bucket", wanted="s3://BUCKET/PREFIX")
            self._url = f"{SCHEME}{self._root}"
            self._files = _s3(self._url, self._bucket)
        else:
            self._root = str(Path(url).absolute())
            self._files = fs.LocalFileSystem()

    def __str__(self) -> str:
        return self._url

    def __reduce__(self) -> Any:
        return Place, (self._url,)  # keys and endpoint are those of the machine that it comes to

    @property
    def remote(self) -> bool:
        """Whether it is a bucket, behind a network."""
        return bool(self._bucket)

    def write(self, name: str, chunks: Iterable[Any]) -> None:
        """All of `chunks`, bytes or what gives its bytes, under `name`; a reader sees them all or no file."""
        with self._refusing(name):
            if not self._bucket:
                _write_local(Path(self._path(name)), chunks)
                return
            try:
                with self._files.open_output_stream(self._path(name)) as stream:
                    for chunk in chunks:
                        stream.write(chunk)
            except BaseException:  # pyarrow has made an object of what there was
                with suppress(OSError):
                    self._files.delete_file(self._path(name))
                raise

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError` where there is none."""
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, a few MiB at a time."""
        with self.open(name) as file:
            while True:
                with self._refusing(name):
                    chunk = file.read(_CHUNK)
                if not chunk:
                    return
                yield chunk

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """A file of pyarrow's, to seek in: only what is read is fetched."""
        with self._refusing(name):
            file = self._files.open_input_file(self._path(name))
        with file:
            yield file

    def read_into(self, name: str, file: Any, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from an open file; raises `IftError` where it has too few bytes."""
        done = 0
        while done < len(buffer):
            with self._refusing(name):
                file.seek(offset + done)
                count = file.readinto(buffer[done:])
            if not count:
                raise IftError(
                    f"{self}/{name} ends at byte {offset + done}", wanted=f"{offset + len(buffer)} bytes"
                )
            done += count

    def files(self, folder: str = "") -> dict[str, int]:
        """The bytes of every file in `folder`, at any depth, by its name there; none where there is no such folder."""
        listed = self._list(folder, recursive=True)
        return {name: info.size for name, info in listed.items() if info.is_file}

    def folders(self) -> list[str]:
        """The names of the folders in it, sorted."""
        return sorted(
            name for name, info in self._list("", recursive=False).items() if info.type.name == "Directory"
        )

    def delete(self, name: str) -> None:
        """A file, or a folder with all that is in it; gone before is as good."""
        with self._refusing(name), suppress(FileNotFoundError):
            path = self._path(name)
            if path == self._bucket:
                self._files.delete_dir_contents(path)
            elif self._files.get_file_info(path).is_file:
                self._files.delete_file(path)
            else:
                self._files.delete_dir(path)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _list(self, folder: str, *, recursive: bool) -> dict[str, Any]:
        from pyarrow import fs

        base = self._path(folder)
        with self._refusing(folder):
            infos = self._files.get_file_info(
                fs.FileSelector(base, recursive=recursive, allow_not_found=True)
            )
        # S3 knows no folders; an object of no bytes, `PREFIX/`, is what pyarrow leaves for one
        return {name: info for info in infos if (name := info.path.removeprefix(base).strip("/"))}

    @contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """What went wrong, in words for the user; a file that is not there stays `FileNotFoundError`."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            where = f"{self}/{name}" if name else str(self)
            raise self._refusal(error, where) from error

    def _refusal(self, error: OSError, where: str) -> IftError:
        text = str(error)
        if not self._bucket:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return IftError(f"{where}: the disk is full", hint="free some room and run again")
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return IftError(
                    f"{where}: access refused ({error.strerror})",
                    wanted="the rights to read, write and delete there",
                )
            return IftError(f"{where}: {error.strerror or text}", wanted="a folder that all nodes see")
        at = _endpoint() or "AWS"
        if "NO_SUCH_BUCKET" in text:
            return IftError(f"{self}: there is no bucket {self._bucket} at {at}", wanted="s3://BUCKET/PREFIX")
        if _DENIED.search(text):
            return IftError(
                f"{where}: access refused by {at}",
                wanted="the rights to list the bucket, and to read, write and delete objects in it",
                hint="see whose keys these are: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            )
        if "NETWORK_CONNECTION" in text:
            cause = text.rpartition("Details: ")[2]
            return IftError(
                f"{where}: {at} could not be reached: {cause}; tried {_ATTEMPTS} times",
                hint="check the network and AWS_ENDPOINT_URL",
            )
        return IftError(f"{where}: {text}", hint="try again later")


def check(url: str | Path, *, rank: int = 0, gather: Gather = alone) -> None:
    """Every rank writes, reads, lists and deletes a small file, and sees the others'.

    Raises the same `IftError` on every rank where one of them cannot.
    """
    place, mine = Place(url), f".check-{uuid.uuid4().hex}"
    written = _problem(lambda: place.write(mine, [mine.encode()]))
    everyones = gather((mine, written))
    _raise_first([problem for _, problem in everyones])

    def see() -> None:
        there = place.files()
        for other, (name, _) in enumerate(everyones):
            try:
                seen = name in there and place.read(name) == name.encode()
            except FileNotFoundError:
                seen = False
            if not seen:
                raise IftError(
                    f"{place} is not one place for all: rank {rank} does not see what rank {other} wrote there",
                    wanted="a folder that all nodes share, or s3://BUCKET/PREFIX",
                    hint="set cluster.storage",
                )

    seen = gather(_problem(see))
    deleted = gather(_problem(lambda: place.delete(mine)))
    _raise_first([*seen, *deleted])


def _problem(action: Callable[[], None]) -> IftError | None:
    try:
        action()
    except IftError as error:
        return error
    return None


def _raise_first(problems: Iterable[IftError | None]) -> None:
    for problem in problems:
        if problem:
            raise problem


def _write_local(path: Path, chunks: Iterable[Any]) -> None:
    """On the disk, and not only on its way there, before anybody is told."""
    fresh = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for folder in [path.parent, *([path.parent.parent] if fresh else [])]:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _s3(url: str, bucket: str) -> Any:
    from pyarrow import fs

    settings: dict[str, Any] = {}
    endpoint = _endpoint()
    if endpoint:
        scheme, _, address = endpoint.rpartition("://")
        settings |= {"scheme": scheme or "https", "endpoint_override": address.rstrip("/")}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    try:
        # AWS says where a bucket is; of another store the region is a mere word, which it may not even look at
        settings["region"] = region or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket))
    except OSError as error:
        if "NotFound" in str(error) or "not found" in str(error):
            raise IftError(
                f"{url}: there is no bucket {bucket} at AWS", wanted="s3://BUCKET/PREFIX"
            ) from None
        raise IftError(
            f"{url}: AWS could not be asked where the bucket is: {error}",
            hint="check the network, or set AWS_REGION; for another store than AWS's set AWS_ENDPOINT_URL",
        ) from error
    return fs.S3FileSystem(
        connect_timeout=_CONNECT,
        # in the background pyarrow would hold all that is written and not yet sent: a rank's whole part of a
        # checkpoint once more
        background_writes=False,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **settings,
    )
