"""pass@1: whether a program that a model wrote passes its tests, run where it can do no harm.

In:  the model's answer and the text of the tests.
Out: 1.0 or 0.0; or a `Result` that says why.

    run("def twice(n): return n + n", "assert twice(4) == 8")    # Result(passed=True, why="passed", detail="")
    run("def twice(n): return n * n", "assert twice(4) == 8")    # Result(False, "wrong", "AssertionError")
    run("while True: pass", "", seconds=1)                       # Result(False, "time", "")

The share of items whose single answer passes is pass@1 (Chen et al. 2021, arXiv 2107.03374).

The program runs under namespaces of its own, of the kernel, as containers do (namespaces(7)):

- network: none, not even the machine's own loopback
- files: Python's own, /usr and /lib, read-only; an empty folder of 16 MB, gone afterwards; no /home, /etc, /proc
- processes: it sees its own alone, at most 16 with their threads; all of them end with it, daemons too
- user: without privileges and unable to get any; started by root, it runs under a user id that nobody has
- limits: seconds of the clock and of the processor, memory of each process, sizes and numbers of open files
- nothing is handed in: an empty environment, no input, no open files; what it prints is thrown away

What this does not do. A fault of the kernel is a way out, as it is of any container: what is meant to attack belongs
in a virtual machine. Memory is limited for each process: 16 of them, or shared memory, hold more. Two things of Linux
have no namespaces: sockets from a virtual machine to its host (vsock) and keys that the kernel holds (keyrings(7)). A
program that knows how it is judged can find the mark of success in its own memory; one that merely ends early
(`sys.exit()`) has not passed.

Where the kernel refuses any of the above, nothing is run: an `IftError` says what was refused.

    run ──stdin──▸ launcher ──fork──▸ first process of the namespaces ──fork, exec──▸ the program
                   keeps the time     builds the walls, ends last                     limits, no privileges

The launcher is this file, run as a script: so it needs the standard library alone.
"""

import ctypes
import json
import os
import re
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, MEMORY_MB = 5.0, 512
_PROCESSES, _OPEN_FILES, _FILE_BYTES = 16, 64, 16 << 20
_MESSAGE = 4096  # bytes of what the program's process may say about how it went
_BACKSTOP = 60  # seconds that the launcher may take beyond the program's own
_NOBODYS = 1 << 30  # user ids from here on belong to nobody

# mount(2), mount_setattr(2), unshare(2), prctl(2): <linux/mount.h>, <linux/sched.h>, <linux/prctl.h>
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 0x1, 0x2, 0x4
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

# What an interpreter needs besides its own folders; what is not there is left out.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache")
_PYTHON = os.path.realpath(sys.executable)  # the one behind a virtual environment
_DEVICES = ("null", "zero", "urandom")

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.M | re.S
)
_WHY = ("wrong", "memory", "error", "ended")

# Runs as the program's process. The mark of success comes in by stdin, goes out by a pipe, and only at the end.
_DRIVER = """
import json, os, sys, types
task = json.load(sys.stdin)
os.close(0)
os.open(os.devnull, os.O_RDONLY)
def end(text):
    os.write(task["says"], text)
    os._exit(0)
module = sys.modules["program"] = types.ModuleType("program")
mark = task["mark"].encode()
os.write(task["says"], b"+")
try:
    for part in ("program", "tests"):
        exec(compile(task[part], part, "exec"), module.__dict__)
except MemoryError:
    end(b"memory")
except SystemExit as error:
    end(b"ended\\nSystemExit")
except BaseException as error:
    why = "wrong" if isinstance(error, AssertionError) else "error"
    detail = str(error)[:300].split("\\n")[0]
    end(f"{why}\\n{type(error).__name__}{': ' if detail else ''}{detail}".encode(errors="replace"))
end(mark)
"""


@dataclass(frozen=True)
class Result:
    """How a program fared.

    `why` is "passed"; "wrong" where an assertion failed; "error" for another exception; "time"; "memory"; or "ended"
    where the process was gone before the tests were through. `detail` is the exception or the signal.
    """

    passed: bool
    why: str
    detail: str = ""


def pass_at_1(answer: str, tests: str, *, allow_code: bool) -> float:
    """1.0 where the program in `answer` passes `tests`, else 0.0.

    Whoever asks for this says so: what a model wrote is run on this machine.
    """
    _ask(allow_code)
    return float(run(extract(answer), tests).passed)


def make_sure(*, allow_code: bool) -> None:
    """Raise now the `IftError` that grading would raise after a training: no consent, or no isolation here."""
    _ask(allow_code)
    run("", "")


def _ask(allow_code: bool) -> None:
    from ift.errors import IftError

    if not allow_code:
        raise IftError(
            "the metric `code` runs programs that the model wrote",
            wanted="your consent, as they run on this machine (without network, files or privileges, within limits)",
            hint="set `evaluate.allow_code: true`, or leave the tasks graded by `code` out",
        )


def extract(answer: str) -> str:
    """The program in a model's answer: its first block fenced as Python, else its first fenced block, else all of it.

    "Sure!\\n```python\\nx = 1\\n```\\nThis sets x."  ->  "x = 1\\n"

    A block that is cut off, as where the answer grew too long, goes to the end.
    """
    blocks = [(label.lower(), body) for _, label, body in _FENCE.findall(answer)]
    python = [body for label, body in blocks if label in ("python", "py", "python3")]
    found = python or [body for _, body in blocks]
    return textwrap.dedent(found[0]) if found else answer


def run(program: str, tests: str, *, seconds: float = SECONDS, memory_mb: int = MEMORY_MB) -> Result:
    """Run `program` and then `tests` in one module; passed where neither raises.

    `seconds` count from when the program begins, `memory_mb` is the address space of each of its processes. Only
    Python's standard library can be imported. Raises `IftError` where the kernel does not let it be isolated.
    """
    from ift.errors import IftError

    assert seconds > 0, seconds
    assert memory_mb > 0, memory_mb
    task = {"program": program, "tests": tests, "seconds": seconds, "memory_mb": memory_mb}
    with tempfile.TemporaryDirectory(
        prefix="ift-code-"
    ) as root:  # where the walls stand; itself it stays empty
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-X", "utf8", str(Path(__file__).resolve())],
                input=json.dumps({**task, "root": root}),
                capture_output=True,
                text=True,
                encoding="utf-8",
                env={},
                cwd="/",
                start_new_session=True,
                timeout=seconds + _BACKSTOP,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Result(False, "time", "it did not even begin")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    if refused := outcome.get("refused"):
        raise IftError(
            f"programs cannot be isolated here, so none is run: {refused}",
            wanted="Linux 5.12 or later that lets this user make namespaces",
            hint="see `sysctl user.max_user_namespaces kernel.apparmor_restrict_unprivileged_userns`; in a container, "
            "add the capability SYS_ADMIN; or leave the tasks graded by `code` out",
        )
    return Result(**outcome)


# The launcher


def _launch(task: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `Result`, or what the kernel refused. Waits for every process that it starts."""
    user = os.geteuid()
    if user == 0:
        # An id of its own, so that the limit of processes counts its own alone; the kernel exempts root from it.
        user = _NOBODYS + os.getpid()
    _unshare(user)
    _die_with_parent()
    heard, says = os.pipe()
    first = _forked(_first_process, task, user, says)
    os.close(says)
    mark, in_time = task["mark"].encode(), True
    said = os.read(heard, 1)  # "+": the walls stand and the program begins
    began = time.monotonic()
    while len(said) <= _MESSAGE:
        left = began + task["seconds"] - time.monotonic()
        if not select.select([heard], [], [], max(0.0, left))[0]:
            in_time = False
            break
        if not (more := os.read(heard, _MESSAGE)):
            break
        said += more
    os.kill(first, signal.SIGKILL)  # and with it, all that lives in its namespace
    status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    if said[:1] != b"+":
        return {"refused": said[1:].decode(errors="replace") or "the first process ended"}
    if said[1:] == mark:
        return {"passed": True, "why": "passed"}
    if not in_time or status == 128 + signal.SIGXCPU:
        return {"passed": False, "why": "time"}
    why, _, detail = said[1:].decode(errors="replace").partition("\n")
    if why not in _WHY:
        why, detail = "ended", f"signal {status - 128}" if status > 128 else f"exit status {status}"
    return {"passed": False, "why": why, "detail": detail}


def _forked(
    work: Callable[[dict[str, Any], int, int], None], task: dict[str, Any], user: int, says: int
) -> int:
    """The id of a process that does `work` and ends; what the kernel refuses it goes out by `says`."""
    child = os.fork()
    if child == 0:
        try:
            work(task, user, says)
        except OSError as error:
            os.write(says, f"-{error}".encode())
        finally:
            os._exit(1)
    return child


def _unshare(user: int) -> None:
    """New namespaces for the processes to come; without root's help, in a namespace of users where we are root."""
    flags = _NEW_MOUNTS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET
    if os.geteuid() == 0:
        _call("unshare", flags)
        return
    group = os.getegid()
    _call("unshare", flags | _NEW_USER)
    # The user keeps its id in there: a process of a user other than 0 has no privileges once it runs a program.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _first_process(task: dict[str, Any], user: int, says: int) -> None:
    """The first process of the namespaces: when it ends, the kernel ends all others in there."""
    _die_with_parent()
    _build_walls(task["root"])
    program = _forked(_become_program, task, user, says)
    while True:
        ended, status = os.wait()  # orphans too
        if ended == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _build_walls(root: str) -> None:
    """Make `root` a small tree of its own and go there for good.

    By chroot rather than pivot_root: the kernel lets nobody in there make a namespace of users, and so nobody gets
    the privileges that leaving would take.
    """
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)  # what is mounted here is seen nowhere else
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=1m")
    own = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(_PYTHON), os.path.dirname(os.__file__)]
    shown: list[Path] = []
    for path in map(Path, (*_SYSTEM, *own)):
        real = path.resolve()
        if not real.exists() or real == Path("/"):
            continue
        if not any(real.is_relative_to(other) for other in shown):
            shown.append(real)
            _bind(real, Path(f"{root}{real}"))
        if path != real and str(path) in _SYSTEM:
            Path(f"{root}{path}").symlink_to(real)
    for name in ("tmp", "dev"):
        Path(root, name).mkdir()
    for name in _DEVICES:
        Path(root, "dev", name).touch()
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    _call(
        "syscall",
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        _AT_FDCWD,
        root.encode(),
        _AT_RECURSIVE,
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    for name in _DEVICES:  # after that, as a device opens only without "nodev"
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _MS_BIND)
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=16m,nr_inodes=1k")
    os.chroot(root)
    os.chdir("/tmp")


def _bind(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(source), str(target), None, _MS_BIND | _MS_REC)


def _become_program(task: dict[str, Any], user: int, says: int) -> None:
    """Give up every privilege, set the limits, and run the driver instead of this."""
    handed_in = os.memfd_create("task")  # rather than a pipe, which holds no long text
    os.write(handed_in, json.dumps({**task, "says": says}).encode())
    os.lseek(handed_in, 0, os.SEEK_SET)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for source, target in ((handed_in, 0), (nowhere, 1), (nowhere, 2)):
        os.dup2(source, target)
    os.set_inheritable(says, True)
    os.setsid()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    processor = -int(-task["seconds"] // 1)  # rounded up; a second later it is killed if it holds on
    for limit, soft, hard in (
        (resource.RLIMIT_CPU, processor, processor + 1),
        (resource.RLIMIT_AS, task["memory_mb"] << 20, task["memory_mb"] << 20),
        (resource.RLIMIT_NPROC, _PROCESSES, _PROCESSES),
        (resource.RLIMIT_FSIZE, _FILE_BYTES, _FILE_BYTES),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(limit, (soft, hard))
    os.execve(_PYTHON, [_PYTHON, "-I", "-S", "-X", "utf8", "-c", _DRIVER], {})


def _die_with_parent() -> None:
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3], of=target)


def _call(name: str, *values: Any, of: str = "") -> None:
    """Call a function of the C library; where it fails, raise what the kernel says."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*values) == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"{name} {of}".strip())


def _main() -> None:
    task = json.load(sys.stdin)
    task["mark"] = secrets.token_hex()
    try:
        outcome = _launch(task)
    except OSError as error:
        outcome = {"refused": str(error)}
    print(json.dumps(outcome))


if __name__ == "__main__":
    _main()
