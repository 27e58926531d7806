"""The Dockerfile's instructions, one by one, in a bare root folder, for where no container engine is.

In:  a target of the Dockerfile; root rights; Debian's `debootstrap`, or a folder that holds its minimal system.
Out: the folder with the target's files, what each instruction took, and a process in it as the image would run one.

    sudo python tests/cluster/replay_image.py --target cpu --into /var/tmp/image --arg TORCH_INDEX=
    sudo python tests/cluster/replay_image.py --into /var/tmp/image --run "ift --version"

What it is not: layers, digests and images pulled. FROM an image of the registry is Debian's minimal system of the
same release, and COPY --from such an image is refused. Pip asks where this machine's pip asks.
"""

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "bookworm"

# A process's own view: /proc, the few devices, shared memory of its own, and nothing of it left afterwards.
ENTER = """
mount --make-rprivate /
mount --bind "$root" "$root"
mkdir -p "$root/proc" "$root/dev" "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for name in null zero full random urandom tty; do
  touch "$root/dev/$name"
  mount --bind "/dev/$name" "$root/dev/$name"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir -m 1777 "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=2g shm "$root/dev/shm"
cp --remove-destination /etc/resolv.conf /etc/hosts "$root/etc/"
for path in $binds; do
  inside="$root/host$path" # not at its own place, which packages may want to write
  if [ -d "$path" ]; then mkdir -p "$inside"; else mkdir -p "${inside%/*}"; touch "$inside"; fi
  mount --bind -o ro "$path" "$inside"
done
"""
# As the manifests run it: nothing can be written but where the image says; a network of its own, with nobody in it.
READ_ONLY = """
for folder in /tmp $writable; do
  mkdir -p "$root$folder"
  mount -t tmpfs -o mode=1777 tmpfs "$root$folder"
done
mount -o remount,bind,ro "$root"
ip link set lo up
"""


@dataclass
class Stage:
    """A stage of the Dockerfile: its instructions, and what they have set so far."""

    name: str
    origin: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    settings: dict[str, str] = field(default_factory=dict)  # ENTRYPOINT, CMD, HEALTHCHECK


def stages_of(dockerfile: Path, arguments: dict[str, str]) -> dict[str, Stage]:
    """The stages by name. `arguments` are those of `--build-arg`."""
    stages: dict[str, Stage] = {}
    known: dict[str, str] = {}
    stage: Stage | None = None
    for line in DockerfileParser(str(dockerfile)).structure:
        word, value = line["instruction"], line["value"]
        if word == "COMMENT":
            continue
        if word == "FROM":
            origin, _, name = re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], value).partition(" AS ")
            stage = stages[name] = Stage(name, origin)
        elif word == "ARG" and stage is None:
            name, _, default = value.partition("=")
            known[name] = arguments.get(name, default)
        elif stage is not None:
            stage.instructions.append((word, value))
    return stages


def needed(stages: dict[str, Stage], target: str) -> list[str]:
    """The stages that `target` stands on, in the order in which they are built, itself last."""
    order: list[str] = []

    def visit(name: str) -> None:
        stage = stages[name]
        froms = [
            value.split()[0] for word, value in stage.instructions if word == "COPY" and "--from" in value
        ]
        for other in [stage.origin, *(each.removeprefix("--from=") for each in froms)]:
            if other in stages and other not in order:
                visit(other)
        order.append(name)

    visit(target)
    return order


def context() -> list[str]:
    """The files that the build may copy: those of git and new ones, less what .dockerignore leaves out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    rules = [
        line.strip()
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return [path for path in listed if not _ignored(path, rules) and (ROOT / path).is_file()]


def _ignored(path: str, rules: list[str]) -> bool:
    """Docker's rule: the last line that fits a path or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        if any(_fits(each, pattern) for each in above):
            ignored = not rule.startswith("!")
    return ignored


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatch(path.rpartition("/")[2], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern)


class Replay:
    """Builds stages below `into`, each a folder, and runs processes in them."""

    def __init__(self, into: Path, arguments: dict[str, str], *, base: Path | None, mirror: str) -> None:
        self.into, self.arguments, self.base, self.mirror = into, arguments, base, mirror
        self.stages = stages_of(ROOT / "Dockerfile", arguments)
        self.pip, self.binds = _pip_settings()

    def build(self, target: str) -> Stage:
        """Build all that `target` needs; a stage whose folder is complete is taken as it is."""
        for name in needed(self.stages, target):
            self._build(self.stages[name])
        return self.stages[target]

    def folder(self, stage: Stage) -> Path:
        """Where the files of a stage lie."""
        return self.into / stage.name

    def run(
        self,
        stage: Stage,
        command: str,
        *,
        user: str = "",
        env: dict[str, str] | None = None,
        sealed: bool = False,
    ) -> int:
        """Run a shell command in a stage; sealed: read-only but for what the image leaves to be written, no pip."""
        settings = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **stage.environment,
        }
        home = "/root" if (user or stage.user) == "root" else "/home/ift"  # as Docker finds it in /etc/passwd
        settings = {"HOME": home, **settings}
        settings |= {**stage.arguments, **({} if sealed else self.pip), **(env or {})}
        script = (
            "set -eu\n"
            + ENTER
            + (READ_ONLY if sealed else "")
            + 'exec chroot --userspec="$user" "$root" /usr/bin/env -i "$@"\n'
        )
        return subprocess.run(
            [
                *["unshare", "--mount", "--pid", *(["--net"] if sealed else []), "--fork", "--kill-child"],
                *["sh", "-c", script, "replay"],
                *[f"{name}={value}" for name, value in settings.items()],
                *["/bin/sh", "-c", f"cd {shlex.quote(stage.folder)} && {command}"],
            ],
            env={
                "PATH": os.environ["PATH"],
                "root": str(self.folder(stage)),
                "user": user or stage.user,
                "binds": "" if sealed else " ".join(self.binds),
                "writable": "/cache /scratch /work",
            },
            check=False,
        ).returncode

    def _build(self, stage: Stage) -> None:
        folder, stamp = self.folder(stage), self.into / f"{stage.name}.json"
        if stage.origin in self.stages:
            origin = self.stages[stage.origin]
            stage.environment, stage.folder, stage.user = dict(origin.environment), origin.folder, origin.user
            stage.settings = dict(origin.settings)
        whole = json.dumps([stage.origin, stage.instructions, self.arguments])
        done = stamp.is_file() and stamp.read_text() == whole
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
            if stage.origin in self.stages:
                subprocess.run(["cp", "-a", "--reflink=auto", self.into / stage.origin, folder], check=True)
            else:
                self._system(folder)
        for word, value in stage.instructions:
            started = time.monotonic()
            self._instruction(stage, word, value, only_settings=done)
            if not done:
                print(f"{time.monotonic() - started:7.1f} s  {stage.name}: {word} {value[:90]}", flush=True)
        stamp.write_text(whole)

    def _system(self, folder: Path) -> None:
        if self.base:
            subprocess.run(["cp", "-a", self.base, folder], check=True)
            return
        try:
            subprocess.run(["debootstrap", "--variant=minbase", RELEASE, folder, self.mirror], check=True)
        finally:
            subprocess.run(["umount", folder / "proc"], check=False, stderr=subprocess.DEVNULL)

    def _instruction(self, stage: Stage, word: str, value: str, *, only_settings: bool) -> None:
        if word == "ENV":
            stage.environment |= dict(each.split("=", 1) for each in shlex.split(value))
        elif word == "ARG":
            name, _, default = value.partition("=")
            stage.arguments[name] = self.arguments.get(name, "".join(shlex.split(default)))
        elif word == "WORKDIR":
            stage.folder = value
            (self.folder(stage) / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = value
        elif word in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
            stage.settings[word] = value
        elif only_settings and word in ("RUN", "COPY"):
            pass
        elif word == "RUN":
            if status := self.run(stage, value):
                raise SystemExit(f"exit status {status}: {stage.name}: RUN {value}")
        elif word == "COPY":
            self._copy(stage, value.split())
        else:
            raise SystemExit(f"{word} is no instruction that this replays")

    def _copy(self, stage: Stage, words: list[str]) -> None:
        *sources, to = [word for word in words if not word.startswith("--")]
        target = self.folder(stage) / os.path.join(stage.folder, to).lstrip("/")
        origin = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), "")
        if origin:
            if origin not in self.stages or self.stages[origin].origin not in self.stages:
                raise SystemExit(f"COPY --from={origin}: that image would have to be pulled")
            target.parent.mkdir(parents=True, exist_ok=True)
            for source in sources:
                subprocess.run(["cp", "-a", self.into / origin / source.lstrip("/"), target], check=True)
            return
        files = context()
        for source in sources:
            found = [path for path in files if path == source or path.startswith(source + "/")]
            if not found:
                raise SystemExit(f"COPY {source}: .dockerignore leaves nothing of it")
            for path in found:
                inside = path.removeprefix(source).lstrip("/")
                into = (
                    target / inside if inside else target / Path(source).name if to.endswith("/") else target
                )
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, into)
                os.chown(into, 0, 0)


def _pip_settings() -> tuple[dict[str, str], list[str]]:
    """This machine's pip settings as variables, with the paths that they name: those lie below /host inside."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings: dict[str, str] = {}
    for name, value in re.findall(r"^[\w-]+\.([\w-]+)='(.*)'$", listed, re.M):
        settings[f"PIP_{name.upper().replace('-', '_')}"] = value.replace("\\n", " ")
    settings |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    paths = {
        path
        for path in re.findall(r"(?:file://|(?<=\s)|^)(/[^\s]+)", "\n".join(settings.values()), re.M)
        if os.path.exists(path)
    }
    for path in paths:
        settings = {
            name: re.sub(
                rf"(?<![\w/]){re.escape(path)}(?![\w-])|(?<=file://){re.escape(path)}(?![\w-])",
                f"/host{path}",
                value,
            )
            for name, value in settings.items()
        }
    # A local index points to files beside it.
    return settings, sorted({path.removesuffix("/simple") for path in paths})


def mirror() -> str:
    """The Debian mirror that this machine's apt asks; other people's packages lie beside it."""
    kept = Path("/etc/apt")
    files = [
        kept / "sources.list",
        *kept.glob("sources.list.d/*.list"),
        *kept.glob("sources.list.d/*.sources"),
    ]
    for file in files:
        if file.is_file() and (
            found := re.search(
                r"^(?:URIs: *|deb +(?:\[.*?\] *)?)(https?://\S+/debian)/?\s", file.read_text(), re.M
            )
        ):
            return found[1]
    return "http://deb.debian.org/debian"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--into", type=Path, required=True, help="a folder for the stages; 5 GB for cpu")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="as --build-arg")
    parser.add_argument("--base", type=Path, help="a folder with Debian's minimal system")
    parser.add_argument("--mirror", default=mirror(), help="for debootstrap")
    parser.add_argument("--run", help="a command in the built image: read-only root, the image's user")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root rights")
    asked.into.mkdir(parents=True, exist_ok=True)
    arguments = dict(each.split("=", 1) for each in asked.arg)
    replay = Replay(asked.into.resolve(), arguments, base=asked.base, mirror=asked.mirror)
    stage = replay.build(asked.target)
    if asked.run:
        raise SystemExit(replay.run(stage, asked.run, sealed=True))


if __name__ == "__main__":
    main()
