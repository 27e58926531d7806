"""Objects of S3, and of any store that speaks as S3 does, as files in the cache.

In:  `s3://BUCKET/KEY`, where `*` in the key stands for any letters, and the cache folder.
Out: the files, whole; one that did not change is not fetched again.

    fetch("s3://films/2024/*.jsonl", cache)    # [CACHE/s3/9f3c…/a.jsonl, CACHE/s3/07d1…/b.jsonl]

Keys, region, address, proxy and certificates are found where botocore always finds them, and so is how often to try
(`AWS_MAX_ATTEMPTS`, `AWS_RETRY_MODE`); five times where nothing says so. botocore asks again until an answer begins. A
body that breaks off is read on from the byte that it has reached, as long as the object is the same. In the cache:

    s3/DIGEST/NAME      an object; the digest is of its address and its ETag
"""

import base64
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ift import packages
from ift.data import cache as caches
from ift.errors import IftError

Progress = Callable[[int, int | None], None]
SCHEME = "s3://"
_CONNECT, _READ = 10.0, 30.0  # seconds for a connection, and for the next bytes of an answer
_ATTEMPTS = 5
_SLOWEST = 1024  # bytes a second, over `_READ` seconds: what is slower will not arrive
_STRETCH = 8 << 20  # bytes that earn a body another attempt: a long one may break off more often
_PAUSE = 20.0  # seconds between two attempts at a body, at most
_CHUNK = 1 << 20
_LOGIN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class _Broken(Exception):
    """A body that did not arrive as it should; the text says how."""


@dataclass
class _Store:
    """A bucket, and how often it was asked the last question."""

    client: Any
    bucket: str
    url: str
    asked: int = 0

    @property
    def address(self) -> str:
        return str(self.client.meta.endpoint_url)

    @property
    def attempts(self) -> int:
        return int(self.client.meta.config.retries["total_max_attempts"])

    def count(self) -> None:
        """Count every time that a question goes out, from one for each new question."""

        def anew(**_: Any) -> None:
            self.asked = 0

        def again(**_: Any) -> None:
            self.asked += 1

        self.client.meta.events.register("before-call.s3", anew)
        self.client.meta.events.register("before-send.s3", again)


def fetch(url: str, cache: Path, progress: Progress | None = None) -> list[Path]:
    """The objects that `s3://BUCKET/KEY` stands for, as files, sorted by their keys.

    Raises `IftError` that says which it is: no such bucket or object, no keys or no right to read, no answer, an answer
    that breaks off.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if not bucket or not key or "*" in bucket:
        raise IftError(f"{url!r} names no object", wanted="s3://BUCKET/KEY")
    store: _Store | None = None
    try:
        store = _Store(_client(), bucket, url)
        store.count()
        found = _objects(store, key)
        if not found:
            raise IftError(
                f"no object is called like {url}", wanted="a key, where `*` stands for any letters"
            )
        return [_object(store, name, etag, size, cache, progress) for name, etag, size in found]
    except (BotoCoreError, ClientError, ValueError) as error:
        raise _refusal(error, url, store) from None


def _client() -> Any:
    import botocore.session
    from botocore.config import Config

    session = botocore.session.get_session()
    attempts = session.get_config_variable("max_attempts") or _ATTEMPTS
    config = Config(
        connect_timeout=_CONNECT, read_timeout=_READ, retries={"total_max_attempts": max(1, attempts)}
    )
    return session.create_client("s3", config=config)


def _objects(store: _Store, key: str) -> list[tuple[str, str, int]]:
    """Key, ETag and size of each, sorted."""
    client, bucket = store.client, store.bucket
    if "*" not in key:
        (head,) = _whole(
            store, ("ETag", "ContentLength"), lambda: [client.head_object(Bucket=bucket, Key=key)]
        )
        return [(key, head["ETag"], head["ContentLength"])]
    pages = client.get_paginator("list_objects_v2")
    prefix = key.partition("*")[0]
    match = packages.matcher(key).fullmatch
    there = [
        entry
        for page in _whole(store, ("IsTruncated",), lambda: pages.paginate(Bucket=bucket, Prefix=prefix))
        for entry in page.get("Contents", [])
    ]
    return sorted((e["Key"], e["ETag"], e["Size"]) for e in there if match(e["Key"]) and e["Key"][-1] != "/")


def _whole(
    store: _Store, parts: tuple[str, ...], ask: Callable[[], Iterable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Answers that have all these parts: to botocore, one that was cut before they came is as good as another."""
    for attempt in range(store.attempts):
        answers = list(ask())
        if all(part in answer for answer in answers for part in parts):
            return answers
        time.sleep(_pause(attempt))
    raise IftError(
        f"{store.url}: {store.address} cut the connection; {_tried(store.attempts)}", hint="try again later"
    )


def _object(store: _Store, key: str, etag: str, size: int, cache: Path, progress: Progress | None) -> Path:
    address = "\n".join([store.address, store.bucket, key, etag])
    place = cache / "s3" / hashlib.sha256(address.encode()).hexdigest()[:32]
    name = key.rpartition("/")[2]
    path = place / name
    try:
        if path.stat().st_size == size:
            return path
    except OSError as error:
        caches.require_damaged(path, error)
    shutil.rmtree(place, ignore_errors=True)  # somebody has been at it
    with caches.made(place) as folder:
        _download(store, key, etag, size, folder / name, progress)
    return path


# ── a body ──


def _download(store: _Store, key: str, etag: str, size: int, path: Path, progress: Progress | None) -> None:
    """The object in `path`; what arrived before a connection broke is kept, and the rest asked for."""
    url = f"{SCHEME}{store.bucket}/{key}"
    done = failures = 0
    sums: dict[str, str] = {}
    with path.open("w+b") as file:
        while True:
            try:
                if done < size:
                    answer, done = _answer(store, key, etag, done)
                    end = done + answer["ContentLength"]
                    sums = sums or {name: answer[name] for name in _SUMS if name in answer}
                    file.seek(done)
                    file.truncate()
                    for chunk in _chunks(answer["Body"]):
                        file.write(chunk)
                        done += len(chunk)
                        if progress:
                            progress(min(done, size), size)
                    if done < size:
                        raise _Broken("the connection was cut" if done < end else "the answer ended early")
                _check(file, done, size, sums)
            except _Broken as error:
                failures += 1
                if failures >= store.attempts + done // _STRETCH:
                    raise IftError(
                        f"{url}: {error}, after {done} of {size} bytes; {_tried(failures)}",
                        hint="check the network, or try again later",
                    ) from None
                done = done if done < size else 0
                time.sleep(_pause(failures - 1))
            else:
                return


def _answer(store: _Store, key: str, etag: str, done: int) -> tuple[dict[str, Any], int]:
    """The answer with the object's bytes, and which is the first; not every store knows of ranges."""
    from botocore.exceptions import ClientError

    rest = {"Range": f"bytes={done}-"} if done else {}
    try:
        answer = store.client.get_object(Bucket=store.bucket, Key=key, IfMatch=etag, **rest)
    except ClientError as error:
        if _status(error) not in (412, 416):
            raise
        answer = {"ETag": None, "ContentLength": 0}
    if (
        not {"ETag", "ContentLength"} <= answer.keys()
    ):  # to botocore, headers that were cut are as good as others
        raise _Broken("the connection was cut")
    if answer["ETag"] != etag:
        raise IftError(f"{SCHEME}{store.bucket}/{key} was replaced while it was read", hint="try again")
    return answer, done if str(answer.get("ContentRange", "")).startswith(f"bytes {done}-") else 0


def _chunks(body: Any) -> Iterator[bytes]:
    """What arrives, as it arrives: a body that trickles is not waited for."""
    import urllib3

    since, arrived = time.monotonic(), 0
    try:
        with (
            body as raw
        ):  # as urllib3 has it: botocore's own `read` returns when all that was asked for is there
            while chunk := raw.read1(_CHUNK):
                yield chunk
                arrived += len(chunk)
                if (passed := time.monotonic() - since) > _READ:
                    if arrived < passed * _SLOWEST:
                        raise _Broken(f"the answer trickled, {arrived} bytes in {passed:.0f} s")
                    since, arrived = time.monotonic(), 0
    except urllib3.exceptions.TimeoutError:
        raise _Broken(f"the answer stopped for {_READ:g} s, a time-out") from None
    except urllib3.exceptions.HTTPError:
        raise _Broken("the connection was cut") from None


def _crc32(data: Any) -> bytes:
    value = 0
    while chunk := data.read(_CHUNK):
        value = zlib.crc32(chunk, value)
    return value.to_bytes(4)


_SUMS: dict[str, Callable[[Any], bytes]] = {
    "ChecksumSHA256": lambda data: hashlib.file_digest(data, "sha256").digest(),
    "ChecksumSHA1": lambda data: hashlib.file_digest(data, "sha1").digest(),
    "ChecksumCRC32": _crc32,
}


def _check(file: Any, done: int, size: int, sums: dict[str, str]) -> None:
    """Raise `_Broken` where these are not the object's bytes."""
    if done > size:
        raise _Broken(f"the answer was longer than the {size} bytes announced")
    for name, wanted in sums.items():
        file.seek(0)
        # "-" stands before the number of parts: such a sum is of the parts' sums
        if "-" not in wanted and base64.b64encode(_SUMS[name](file)).decode() != wanted:
            raise _Broken(f"what came does not have the object's {name.removeprefix('Checksum')} sum")


# ── refusals ──


def _pause(failures: int) -> float:
    return float(min(_PAUSE, 2**failures))


def _tried(times: int) -> str:
    return "tried once" if times <= 1 else f"tried {times} times"


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _refusal(error: Exception, url: str, store: _Store | None) -> IftError:
    """What went wrong, in words for the user: missing, not allowed, out of reach."""
    from botocore import exceptions

    at = store.address if store else os.environ.get("AWS_ENDPOINT_URL", "S3")
    tried = _tried(store.asked if store else 1)
    if isinstance(error, exceptions.ClientError) and store:
        code, status = error.response["Error"]["Code"], _status(error)
        if status == 404:
            return _missing(code, url, store)
        named = f"HTTP {status}" if code == str(status) else f"HTTP {status}, {code}"
        if status in (401, 403) or "Token" in code:
            return IftError(
                f"{url}: access refused ({named})",
                wanted="the rights to list the bucket and to read the object",
                hint=f"see whose keys these are, and what they may read: {_LOGIN}",
            )
        return IftError(f"{url}: {at} answered with {named}; {tried}", hint="try again later")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return IftError(f"{url}: there are no keys for S3", hint=_LOGIN)
    if isinstance(error, exceptions.ConnectTimeoutError | exceptions.ReadTimeoutError):
        return IftError(
            f"{url}: {at} did not answer in time; {tried}", hint="try again later, or see AWS_ENDPOINT_URL"
        )
    if isinstance(error, exceptions.ConnectionClosedError | exceptions.ResponseStreamingError):
        return IftError(f"{url}: {at} cut the connection; {tried}", hint="try again later")
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError):
        hint = "check the network and AWS_ENDPOINT_URL"
        return IftError(f"{url}: {at} could not be reached: {error}; {tried}", hint=hint)
    return IftError(f"{url}: {error}")


def _missing(code: str, url: str, store: _Store) -> IftError:
    """The answer about a single object does not say whether its bucket is there."""
    from botocore.exceptions import BotoCoreError, ClientError

    gone = code == "NoSuchBucket"
    if not gone:
        try:
            store.client.head_bucket(Bucket=store.bucket)
        except ClientError as error:
            gone = _status(error) == 404
        except BotoCoreError:
            pass
    if gone:
        return IftError(
            f"{url}: there is no bucket {store.bucket} at {store.address}", wanted="s3://BUCKET/KEY"
        )
    return IftError(
        f"there is no object {url}", hint=f"`aws s3 ls {url.rpartition('/')[0]}/` lists what there is"
    )
