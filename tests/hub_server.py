"""A hub on loopback: as much of the real one's HTTP as its client libraries ask for, for data sets and models.

hub = FakeHub({"acme/films": Repo({"train.csv": b"text,label\nfine,1\n"})})
threading.Thread(target=hub.serve_forever, daemon=True).start()
subprocess.run([...], env={**os.environ, **environment(hub.url, home)})
"""

import contextlib
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_let_me_in"


def environment(url: str, home: Path) -> dict[str, str]:
    """What a process is given whose hub is at `url` and that keeps what it fetches in `home`."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }


def sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Repo:
    """A data set or a model: its branches, each with its files; who may see it."""

    def __init__(
        self, main: dict[str, bytes], *, gated: bool = False, private: bool = False, **refs: dict[str, bytes]
    ) -> None:
        self.refs = {"main": main, **{name.replace("__", "/"): files for name, files in refs.items()}}
        self.gated, self.private = gated, private

    def files(self, revision: str) -> dict[str, bytes] | None:
        return {**self.refs, **{sha(files): files for files in self.refs.values()}}.get(revision)


class Handler(BaseHTTPRequestHandler):
    """As much of the hub as the client libraries ask for."""

    protocol_version = "HTTP/1.1"
    server: "FakeHub"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_GET

    def answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(f"{self.command} {unquote(url.path)}")
        stumbles = self.server.stumbles > 0 and "/api/datasets/" in url.path
        self.server.stumbles -= stumbles
        if self.server.broken or stumbles:
            return self.send(500, {})
        parts = url.path.strip("/").split("/")
        api = parts[0] == "api"
        parts = parts[api:]
        if not api and parts[0] != "datasets":  # the address of a model's file has no word for its kind
            parts = ["models", *parts]
        if len(parts) < 2:  # nothing about a repository
            return self.send(404, {})
        name, verb, rest = "/".join(parts[1:3]), *(parts[3:4] or [""]), [unquote(p) for p in parts[4:]]
        if api and name not in self.server.repos and parts[1] in self.server.moved:
            return self.send(307, {"Location": f"/api/datasets/{self.server.moved[parts[1]]}"})
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not allowed):
            return self.send(404 if allowed else 401, {"X-Error-Code": "RepoNotFound"})
        files = repo.files(rest[0] if rest else "main")
        if files is None:
            return self.send(404, {"X-Error-Code": "RevisionNotFound"})
        if not api:
            if repo.gated and not allowed:
                return self.send(401, {"X-Error-Code": "GatedRepo"})
            return self.file(files, "/".join(rest[1:]))
        if verb in ("", "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            info = {"id": name, "sha": sha(files), "siblings": siblings, "private": repo.private}
            return self.json({**info, "gated": "auto" if repo.gated else False, "tags": [], "downloads": 0})
        if verb == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) if b"=" in body else json.loads(body)["paths"]
            return self.json([e for path in asked for e in entries(files) if e["path"] == path])
        if verb == "tree":
            folder = "/".join(rest[1:])
            deep = parse_qs(url.query).get("recursive") == ["true"]
            found = [e for e in entries(files) if not folder or e["path"].startswith(f"{folder}/")]
            depth = folder.count("/") + bool(folder)
            return self.json([e for e in found if deep or e["path"].count("/") == depth])
        return self.send(404, {})

    def file(self, files: dict[str, bytes], path: str) -> None:
        commit = {"X-Repo-Commit": sha(files)}
        if path not in files:
            return self.send(404, {"X-Error-Code": "EntryNotFound", **commit})
        etag = {"ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"'}
        size = len(files[path])
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
            span = {"Content-Range": f"bytes {first}-{last}/{size}"}
            return self.send(206, {**commit, **etag, **span}, files[path][first : last + 1])
        return self.send(200, {**commit, **etag}, files[path])

    def json(self, value: Any) -> None:
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # who streams hangs up when it has enough
                for start in range(0, len(body), 1 << 16):
                    self.wfile.write(body[start : start + (1 << 16)])
                    self.server.sent += len(body[start : start + (1 << 16)])


def entries(files: dict[str, bytes]) -> list[dict[str, Any]]:
    folders = {"/".join(p.split("/")[:i]) for p in files for i in range(1, p.count("/") + 1)}
    return [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in sorted(folders)] + [
        {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
        for p, b in sorted(files.items())
    ]


class FakeHub(ThreadingHTTPServer):
    """`asked` lists the requests, `sent` counts bytes; `broken` makes every answer a 500, `stumbles` so many; `moved`
    are old names."""

    daemon_threads = True

    def __init__(self, repos: dict[str, Repo]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.sent = 0
        self.broken, self.stumbles = False, 0
        self.moved: dict[str, str] = {}
        self.repos = repos

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"
