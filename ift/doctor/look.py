"""What a machine has, as plain values: gathered here, or by a process on each node of a cluster.

In:  nothing but the machine.
Out: what JSON can hold, for the judgements in ift/doctor/machine.py.

    facts()["shm"]      # {"total": 67108864, "free": 67108864}
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ift import cluster, storage

SHM = Path("/dev/shm")
COMPARED = ("ray", "torch", "deepspeed", "transformers", "ift")  # have to be equal on all nodes


def facts() -> dict[str, Any]:
    """All of it. Takes some seconds: torch and DeepSpeed are imported."""
    with silence():
        gpus = cuda()
        kernels = ops()
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in COMPARED},
        "required": unmet(),
        "gpus": gpus,
        "ops": kernels,
        "locks": locks(extension_folders()),
        "disks": {str(folder): room(folder) for folder in disks()},
        "shm": room(SHM),
        "token": token_file(),
    }


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def unmet(requirements: Sequence[str] | None = None) -> dict[str, Any]:
    """How many packages `ift` asks for, and which of them are not there in the version that it takes.

    {"python": ">=3.11", "count": 25, "unmet": ["torch 2.1.0, wanted >=2.13"]}
    """
    from packaging.requirements import Requirement

    found: list[str] = []
    python = ""
    if requirements is None:
        try:
            requirements = importlib.metadata.requires("ift") or []
            python = importlib.metadata.metadata("ift")["Requires-Python"] or ""
        except importlib.metadata.PackageNotFoundError:
            requirements = []  # a job brings its own `ift`
    wanted = [Requirement(text) for text in requirements]
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    for requirement in wanted:
        version = version_of(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version or 'missing'}, wanted {requirement.specifier}")
    return {"python": python, "count": len(wanted), "unmet": found}


# ── GPUs and kernels ──


def cuda() -> dict[str, Any]:
    """The GPUs as the system shows them, and as torch sees them."""
    found: dict[str, Any] = {
        "device_files": os.path.exists("/dev/nvidiactl"),
        "driver": _driver(),
        "torch": None,
        "cuda": None,
        "names": [],
        "bytes": [],
        "bf16": None,
        "nccl": None,
        "error": None,
    }
    try:
        import torch

        found["torch"] = torch.__version__
        found["cuda"] = torch.version.cuda
        if torch.version.cuda and found["device_files"]:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # says why not, which `is_available` keeps to itself
            for number in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(number)
                found["names"].append(properties.name)
                found["bytes"].append(properties.total_memory)
            found["bf16"] = torch.cuda.is_bf16_supported()
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        found["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return found


def _driver() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def ops() -> dict[str, Any]:
    """Whether DeepSpeed's kernels are prebuilt, can be compiled here, or neither; and what compiling needs."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cluster.has_gpu() else "cpu")
    if os.environ["DS_ACCELERATOR"] == "cpu":  # torch's compiler, 2 s to import, has nothing to do on a CPU
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    found: dict[str, Any] = {
        "compiler": shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"),
        "ninja": shutil.which("ninja") is not None or importlib.util.find_spec("ninja") is not None,
        "cuda_home": None,
        "states": {},
        "error": None,
    }
    try:  # what `train.offload` and `train.nvme` use of DeepSpeed's kernels
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops import op_builder
        from torch.utils.cpp_extension import CUDA_HOME

        found["cuda_home"] = CUDA_HOME
        for name, builder in (
            ("cpu_adam", op_builder.CPUAdamBuilder()),
            ("async_io", op_builder.AsyncIOBuilder()),
        ):
            if installed_ops.get(name):
                found["states"][name] = "prebuilt"
            else:
                able = builder.is_compatible(verbose=False)
                found["states"][name] = "will compile" if able else "not compatible"
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        found["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return found


def extension_folders() -> list[Path]:
    """Where kernels are compiled: ift's own folder, and torch's."""
    torchs = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [
        storage.cache_dir() / "torch_extensions",
        Path(torchs) if torchs else cache / "torch_extensions",
    ]


def locks(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The lock files of torch's builds in `folders`, and the process that holds each; None where it has gone.

    A build that goes on keeps its lock file open; one that was killed leaves the file, and every later start waits
    for it for ever.
    """
    paths = {lock.resolve() for folder in folders if folder.is_dir() for lock in folder.rglob("lock")}
    return [{"path": str(path), "holder": _holder(path)} for path in sorted(paths) if path.is_file()]


def _holder(path: Path) -> int | None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) == str(path):
                    return int(process.name)
        except OSError:  # it has ended, or is another user's
            continue
    return None


# ── room ──


def disks() -> list[Path]:
    """The folders that a run fills: where it was started, the cache, Ray's temporary files."""
    return [Path.cwd(), storage.cache_dir(), Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())]


def room(folder: Path) -> dict[str, int] | None:
    """Bytes in all and free of the disk that holds `folder`; None where there is none."""
    existing = next((p for p in [folder, *folder.parents] if p.exists()), None)
    if existing is None or (folder == SHM and existing != SHM):
        return None
    usage = shutil.disk_usage(existing)
    return {"total": usage.total, "free": usage.free}


def token_file() -> dict[str, Any] | None:
    """Ray's token file, and whether others than its owner may read it; None where there is none."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return {"path": str(path), "open": bool(mode & (stat.S_IRWXG | stat.S_IRWXO))}


@contextmanager
def silence() -> Iterator[Callable[[], str]]:
    """What libraries print meanwhile, C++ included, goes to a file; the value reads it."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as chatter:
        saved = os.dup(1), os.dup(2)
        for stream in (1, 2):
            os.dup2(chatter.fileno(), stream)
        try:
            yield lambda: os.pread(chatter.fileno(), 1 << 20, 0).decode(errors="replace")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, before in zip((1, 2), saved, strict=True):
                os.dup2(before, stream)
                os.close(before)
