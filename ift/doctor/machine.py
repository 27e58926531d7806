"""Judgements of one machine: each takes what it looks at, and says what to do.

In:  what ift/doctor/look.py found.
Out: a `Check` each.

    shared_memory({"total": 2**26, "free": 2**26}, store=2**30, gpus=0).verdict     # "warn"
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ift.cluster import OBJECT_STORE
from ift.doctor.check import Check

GIB = 2**30
_SPILLS = 0.05  # of a disk is free: below that Ray no longer spills (`local_fs_capacity_threshold` is 0.95)
_LITTLE, _NONE = 20 * GIB, 2 * GIB  # free: a model of a billion parameters and its checkpoints take 20 GiB
_NCCL = GIB  # of shared memory, that GPUs of one machine speak through


def judge(facts: Mapping[str, Any], *, store: int = OBJECT_STORE) -> list[Check]:
    """All checks of a machine on which Ray keeps `store` bytes of objects."""
    gpus = facts["gpus"]
    return [
        python(facts["python"], facts["required"]["python"]),
        packages(facts["required"]),
        torch(gpus),
        cuda(gpus),
        nccl(gpus),
        deepspeed_ops(facts["ops"], gpus=len(gpus["names"])),
        build_locks(facts["locks"]),
        disk(facts["disks"]),
        shared_memory(facts["shm"], store=store, gpus=len(gpus["names"])),
        token_file(facts["token"]),
    ]


def python(version: str, wanted: str) -> Check:
    """`wanted` is a specifier such as `>=3.11,<3.13`; empty where nobody said."""
    from packaging.specifiers import SpecifierSet

    if SpecifierSet(wanted).contains(version):
        return Check("python", "pass", version)
    return Check("python", "fail", f"{version}, and ift takes {wanted}", "make a .venv with another Python")


def packages(required: Mapping[str, Any]) -> Check:
    """`required` is of look.unmet: how many packages ift asks for, and which are not as it wants them."""
    if required["unmet"]:
        return Check(
            "packages",
            "fail",
            "; ".join(required["unmet"]),
            "install ift again with the versions that were tested: pip install -c constraints.txt .",
        )
    if not required["count"]:
        return Check("packages", "pass", "ift is not installed here; a job brings its own")
    return Check("packages", "pass", f"all {required['count']} that ift asks for are in its ranges")


def torch(gpus: Mapping[str, Any]) -> Check:
    """Whether it is there, and what it was built for."""
    if gpus["torch"] is None:
        return Check("torch", "fail", f"cannot be imported: {gpus['error']}", "pip install torch")
    build = f"for CUDA {gpus['cuda']}" if gpus["cuda"] else "for CPU"
    return Check("torch", "pass", f"{gpus['torch']}, built {build}")


def cuda(gpus: Mapping[str, Any]) -> Check:
    """Whether torch can use the GPUs that the system shows."""
    if not gpus["device_files"]:
        return Check("cuda", "pass", "no NVIDIA GPU here: training takes the CPU")
    driver = f", driver {gpus['driver']}" if gpus["driver"] else ""
    if not gpus["cuda"]:
        return Check(
            "cuda",
            "fail",
            f"there are GPUs{driver}, and torch is built for CPU",
            "install torch from PyPI or for your CUDA: https://pytorch.org/get-started/locally",
        )
    if gpus["error"] or not gpus["names"]:
        return Check(
            "cuda",
            "fail",
            f"there are GPUs{driver}, and torch (CUDA {gpus['cuda']}) cannot use them: "
            + (gpus["error"] or "it sees none (CUDA_VISIBLE_DEVICES?)"),
            "see what `nvidia-smi` says; a driver older than torch's CUDA must be brought up to date",
        )
    kinds = sorted(set(gpus["names"]))
    words = f"{len(gpus['names'])} × {', '.join(kinds)}, {min(gpus['bytes']) / GIB:.0f} GiB{driver}"
    if len(kinds) > 1:
        return Check(
            "cuda", "warn", words, "GPUs of one kind train at the pace of each; hide the slower ones"
        )
    if not gpus["bf16"]:
        return Check("cuda", "warn", f"{words}, without bf16", "set train.precision=fp32")
    return Check("cuda", "pass", words)


def nccl(gpus: Mapping[str, Any]) -> Check:
    """What GPUs sum their gradients with."""
    if not gpus["names"]:
        return Check("nccl", "pass", "not needed without GPUs: gloo is used")
    if not gpus["nccl"]:
        return Check("nccl", "fail", "torch has none", "install a build of torch for CUDA on Linux")
    return Check("nccl", "pass", gpus["nccl"])


def deepspeed_ops(ops: Mapping[str, Any], *, gpus: int) -> Check:
    """`cpu_adam` is what `train.offload` needs on GPUs, `async_io` what `train.nvme` does; a CPU needs neither."""
    name = "deepspeed ops"
    if ops["error"]:
        return Check(name, "fail", f"DeepSpeed cannot be imported: {ops['error']}", "pip install deepspeed")
    words = ", ".join(f"{op} {state}" for op, state in ops["states"].items())
    if not gpus:
        return Check(name, "pass", f"{words}; a CPU needs none")
    lacking = [
        what
        for what, there in (
            ("a C++ compiler", ops["compiler"]),
            ("ninja", ops["ninja"]),
            ("the CUDA toolkit (CUDA_HOME)", ops["cuda_home"]),
        )
        if not there
    ]
    state = ops["states"]["cpu_adam"]
    if state == "not compatible" or (state == "will compile" and lacking):
        lacks = f"; compiling lacks {', '.join(lacking)}" if lacking else ""
        return Check(
            name,
            "warn",
            f"{words}{lacks}: train.offload will not work",
            "install what is lacking, or build DeepSpeed with DS_BUILD_CPU_ADAM=1",
        )
    return Check(name, "pass", words)


def build_locks(locks: Sequence[Mapping[str, Any]]) -> Check:
    """`locks` are of look.locks. A build that was killed leaves one, for which every later start waits for ever."""
    stale = [lock["path"] for lock in locks if lock["holder"] is None]
    if stale:
        return Check(
            "build locks",
            "fail",
            f"{len(stale)} left by a build that was killed: whoever wants that kernel waits for ever",
            "where no build is running, remove: rm " + " ".join(stale),
        )
    if locks:
        holders = ", ".join(str(lock["holder"]) for lock in locks)
        return Check("build locks", "pass", f"a kernel is being compiled (process {holders})")
    return Check("build locks", "pass", "none")


def disk(disks: Mapping[str, Mapping[str, int] | None]) -> Check:
    """The fullest decides; folders on the same disk are told once.

    What root alone may use counts as used, as it does for Ray.
    """
    texts, verdicts = [], set()
    seen: set[tuple[int, int]] = set()
    for folder, usage in disks.items():
        if usage is None or (usage["total"], usage["free"]) in seen:
            continue
        seen.add((usage["total"], usage["free"]))
        share = usage["free"] / usage["total"] if usage["total"] else 0.0
        texts.append(f"{_size(usage['free'])} free ({share:.0%}) at {folder}")
        full = usage["free"] < _NONE or share <= _SPILLS
        verdicts.add("fail" if full else "warn" if usage["free"] < _LITTLE else "pass")
    words = "; ".join(texts)
    if "fail" in verdicts:
        return Check(
            "disk",
            "fail",
            f"{words}; a model needs more, and below {_SPILLS:.0%} Ray writes nothing to disk",
            "free some room, or go to another disk: --output, IFT_CACHE, RAY_TMPDIR",
        )
    if "warn" in verdicts:
        return Check(
            "disk", "warn", words, "enough for small models; `ift run` says what one takes before it starts"
        )
    return Check("disk", "pass", words)


def shared_memory(shm: Mapping[str, int] | None, *, store: int, gpus: int) -> Check:
    """`store` bytes of Ray's objects live there, and with several GPUs NCCL's buffers."""
    name = "shared memory"
    wanted = store + (_NCCL if gpus > 1 else 0)
    larger = f"docker run --shm-size={-(-wanted // GIB)}g; in Kubernetes an emptyDir with medium: Memory at /dev/shm"
    if shm is None:
        return Check(name, "fail", "there is no /dev/shm", larger)
    words = f"{_size(shm['free'])} free of {_size(shm['total'])} in /dev/shm"
    of_ray = f"Ray's object store takes {_size(store)}"
    if gpus > 1 and shm["free"] < _NCCL:
        return Check(name, "fail", f"{words}: too little for NCCL between {gpus} GPUs; {of_ray}", larger)
    if shm["total"] < store:
        return Check(name, "warn", f"{words}; {of_ray}, and would put it into slow files in /tmp", larger)
    return Check(name, "pass", f"{words}; {of_ray}")


def token_file(token: Mapping[str, Any] | None) -> Check:
    """Who may read the file with which anyone runs code as its owner."""
    name = "token file"
    if token is None:
        return Check(name, "pass", "none yet; Ray makes one when it is first started")
    if token["open"]:
        return Check(
            name,
            "warn",
            f"other users of this machine can read {token['path']}, and so run code as you",
            f"chmod 600 {token['path']}",
        )
    return Check(name, "pass", f"{token['path']}, for you alone")


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
