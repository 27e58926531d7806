"""A program is judged by its tests, and does nothing else: no network, no files, no processes, nothing left behind."""

import os
import socket
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from ift.errors import IftError
from ift.tasks import code
from ift.tasks.code import extract, make_sure, pass_at_1, run
from ift.tasks.metrics import grade


@pytest.fixture(scope="module", autouse=True)
def _isolated() -> None:
    try:
        run("", "")
    except IftError as error:
        pytest.skip(
            f"needs namespaces: `sysctl user.max_user_namespaces`, or CAP_SYS_ADMIN in a container ({error})"
        )


def fails(program: str, *, seconds: float = 10, memory_mb: int = 512) -> tuple[str, str]:
    """Why, and the detail."""
    result = run(program, "", seconds=seconds, memory_mb=memory_mb)
    assert not result.passed, result
    return result.why, result.detail


# what passes

ITEMS = [  # a right program, a wrong one, the tests
    (
        "def longest(words: list[str]) -> str | None:\n    return max(words, key=len, default=None)\n",
        "def longest(words):\n    return sorted(words)[-1] if words else None\n",
        "def check(candidate):\n    assert candidate([]) is None\n    assert candidate(['a', 'ccc', 'bb']) == 'ccc'\n"
        "    assert candidate(['z', 'aaa']) == 'aaa'\n\ncheck(longest)\n",
    ),
    (
        "from collections import Counter\n\ndef most(text):\n    return Counter(text).most_common(1)[0][0]\n",
        "def most(text):\n    return text[0]\n",
        "assert most('abba b') == 'b'",
    ),
    (
        "from __future__ import annotations\nimport dataclasses, math\n\n@dataclasses.dataclass\nclass Disc:\n"
        "    r: float\n    def area(self) -> float:\n        return math.pi * self.r ** 2\n\n"
        "if __name__ == '__main__':\n    print(Disc(float(input())).area())\n",
        "class Disc:\n    def __init__(self, r): self.r = r\n    def area(self): return 3 * self.r ** 2\n",
        "assert abs(Disc(2).area() - 12.566) < 1e-3",
    ),
    (
        "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n",
        "def fib(n):\n    return n if n < 2 else fib(n - 1)\n",
        "assert [fib(n) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "tests"), ITEMS, ids=["longest", "most", "disc", "fib"])
def test_a_right_program_passes_and_a_wrong_one_does_not(right: str, wrong: str, tests: str) -> None:
    assert run(right, tests) == code.Result(True, "passed")
    assert run(wrong, tests) == code.Result(False, "wrong", "AssertionError")


def test_an_answer_is_graded_by_its_program() -> None:
    answer = "Gladly:\n\n```python\ndef one():\n    return 1\n```\n\nIt returns 1."
    assert pass_at_1(answer, "assert one() == 1", allow_code=True) == 1
    assert grade("code", answer, "assert one() == 1", allow_code=True) == 1
    assert grade("code", answer, "assert one() == 2", allow_code=True) == 0


def test_the_tests_alone_are_no_answer() -> None:
    assert grade("code", "assert one() == 1", "assert one() == 1", allow_code=True) == 0


def test_without_consent_nothing_runs() -> None:
    for refused in (lambda: pass_at_1("", "", allow_code=False), lambda: make_sure(allow_code=False)):
        with pytest.raises(IftError) as error:
            refused()
        assert str(error.value) == (
            "the metric `code` runs programs that the model wrote\n"
            "  wanted: your consent, as they run on this machine "
            "(without network, files or privileges, within limits)\n"
            "  next:   set `evaluate.allow_code: true`, or leave the tasks graded by `code` out"
        )
    make_sure(allow_code=True)


@pytest.mark.parametrize(
    ("program", "why", "detail"),
    [
        ("1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("def f(:", "error", "SyntaxError: invalid syntax (program, line 1)"),
        ("x = '\0'", "error", "SyntaxError: source code string cannot contain null bytes"),
        ("x = '\ud800'", "error", None),
        ("raise ValueError('\\ud800')", "error", "ValueError: ?"),
        ("input()", "error", "EOFError: EOF when reading a line"),
        ("import sys; sys.exit(0)", "ended", "SystemExit"),
        ("import os; os._exit(0)", "ended", "exit status 0"),
        ("import os; os.abort()", "ended", "signal 6"),
        ("import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)",
         "ended", "exit status 0"),
        ("import os\nfor fd in range(3, 64):\n    try:\n        while True: os.write(fd, b'x' * 9999)\n"
         "    except OSError: pass", "ended", None),
        ("def f(): f()\nf()", "error", "RecursionError: maximum recursion depth exceeded"),
        ("import numpy", "error", "ModuleNotFoundError: No module named 'numpy'"),
    ],
)  # fmt: skip
def test_what_else_is_no_success(program: str, why: str, detail: str | None) -> None:
    found = fails(program)
    assert found == (why, found[1] if detail is None else detail)


def test_output_is_thrown_away_and_stops_nothing() -> None:
    assert run(
        "import sys\nfor _ in range(300):\n    print('x' * 9999)\n    sys.stderr.write('y' * 9999)", ""
    ).passed


def test_a_long_program_passes() -> None:
    assert run("x = '" + "y" * 1_000_000 + "'", "assert len(x) == 1_000_000").passed


# limits


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import signal\nfor s in (signal.SIGTERM, signal.SIGXCPU): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "import os\nif not os.fork():\n    os.setsid()\nwhile True: pass",
        "import threading, time\ntry:\n    time.sleep(600)\nfinally:\n    while True: pass",
    ],
)
def test_what_does_not_end_is_stopped(program: str) -> None:
    began = time.monotonic()
    assert fails(program, seconds=1) == ("time", "")
    assert time.monotonic() - began < 30


def test_the_time_of_the_tests_counts_too() -> None:
    assert run("def f():\n    while True: pass", "f()", seconds=1).why == "time"


def test_a_thread_that_goes_on_does_not_hold_a_success_back() -> None:
    assert run("import threading, time\nthreading.Thread(target=time.sleep, args=[600]).start()", "").passed


@pytest.mark.parametrize("more", ["bytearray(10 ** 7)", "[0] * 10 ** 6", "'x' * 10 ** 9"])
def test_what_takes_more_and_more_memory_is_stopped(more: str) -> None:
    assert fails(f"x = []\nwhile True: x.append({more})", memory_mb=200) == ("memory", "")


def test_a_memory_limit_leaves_room_for_what_is_below_it() -> None:
    assert run("x = bytearray(150 << 20)", "assert len(x)", memory_mb=256).passed


def test_processes_are_few() -> None:
    program = "import os, time\nfor _ in range(99):\n    if os.fork() == 0: time.sleep(600)"
    why, detail = fails(program)
    assert (why, detail) == ("error", "BlockingIOError: [Errno 11] Resource temporarily unavailable")


def test_a_fork_bomb_is_stopped_and_leaves_no_process() -> None:
    name = f"bomb-{os.getpid()}"
    bomb = (
        f"import ctypes, os\nctypes.CDLL(None).prctl(15, b{name!r}, 0, 0, 0)\n"
        "while True:\n    try: os.fork()\n    except OSError: pass"
    )
    assert fails(bomb, seconds=1) == ("time", "")
    assert [process for process in psutil.process_iter(["name"]) if process.info["name"] == name] == []


def test_files_are_small() -> None:
    assert fails("open('a', 'w').write('x' * (17 << 20))") == ("error", "OSError: [Errno 27] File too large")
    many = "for n in range(9): open(str(n), 'w').write('x' * (4 << 20))"
    assert fails(many) == ("error", "OSError: [Errno 28] No space left on device")
    assert fails("held = [open('/dev/null') for _ in range(99)]")[1].startswith(
        "OSError: [Errno 24] Too many open"
    )


# isolation


def test_the_network_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        socket.create_connection(address, timeout=5).close()  # from here it is not
        server.accept()[0].close()
        program = f"import socket\nsocket.create_connection({address!r}, timeout=5)"
        assert fails(program) == ("error", "OSError: [Errno 101] Network is unreachable")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_sockets_in_the_abstract_are_out_of_reach() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0ift-test-{os.getpid()}")
        server.listen()
        program = f"import socket\nsocket.socket(socket.AF_UNIX).connect('\\0ift-test-{os.getpid()}')"
        assert fails(program)[1] == "ConnectionRefusedError: [Errno 111] Connection refused"


def test_the_files_of_the_machine_are_out_of_sight(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("42")
    secret.chmod(0o644)
    for path in (
        secret,
        Path(__file__),
        Path("/etc/passwd"),
        Path("/proc/self/environ"),
        Path("/proc/1/mounts"),
    ):
        assert path.exists()
        assert fails(f"open({str(path)!r})")[1].startswith("FileNotFoundError")


def test_nothing_can_be_written_but_in_its_own_folder() -> None:
    import json as library

    for folder in ("/", "/usr", "/dev", os.path.dirname(library.__file__)):
        why, detail = fails(f"open({folder + '/x'!r}, 'w')")
        assert (why, detail.split(":")[1]) == ("error", " [Errno 30] Read-only file system")
    assert run(
        "open('x', 'w').write('y')", "import os\nassert os.getcwd() == '/tmp' and os.listdir() == ['x']"
    ).passed


def test_one_program_sees_nothing_of_another() -> None:
    assert run("import os\nopen('x', 'w').close()", "").passed
    assert run("import os", "assert os.listdir('/tmp') == []").passed


def test_nothing_is_handed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with tempfile.TemporaryFile() as held:
        os.set_inheritable(held.fileno(), True)
        program = (
            "import os\nassert set(os.environ) <= {'LC_CTYPE'}, os.environ\n"  # Python's own
            "kinds = []\nfor fd in range(64):\n    try: kinds.append(os.fstat(fd).st_mode >> 12)\n"
            "    except OSError: pass\n"
            "assert kinds == [2, 2, 2, 1], kinds"  # /dev/null three times, and the pipe for the result
        )
        assert run(program, "") == code.Result(True, "passed")


def test_it_has_no_privileges_and_can_get_none() -> None:
    user = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    assert run(user, "assert os.getuid() != 0").passed
    for attempt in (
        "libc.unshare(0x10000000)",  # a namespace of users, in which it would be root
        "libc.unshare(0x20000)",
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "libc.mount(None, b'/usr', None, 0x1020, None)",  # no longer read-only
        "libc.umount2(b'/tmp', 2)",
        "libc.chroot(b'/tmp')",
        "libc.setuid(0)",
        "libc.ptrace(16, 1, 0, 0)",  # to take over the process that built the walls
    ):
        assert run(user, f"assert {attempt} == -1, 'done'") == code.Result(True, "passed"), attempt
    assert run(user, "import resource as r\ntry:\n    r.setrlimit(r.RLIMIT_NPROC, (99, 99))\n    assert 0\n"
                     "except ValueError: pass").passed  # fmt: skip


def test_it_sees_no_process_but_its_own() -> None:
    assert fails(f"import os\nos.kill({os.getpid()}, 0)")[1].startswith("ProcessLookupError")
    assert run("import os", "assert os.getpid() < 5, os.getpid()").passed


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = psutil.Process().children(
        recursive=True
    )  # an earlier test's, such as the server that forks ranks
    daemon = (
        "import subprocess\nopen('x', 'w').close()\n"
        "subprocess.Popen(['/bin/sleep', '86399.5'], start_new_session=True)"
    )
    for program in (daemon, f"{daemon}\nwhile True: pass", f"{daemon}\nraise ValueError"):
        run(program, "", seconds=1)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert set(psutil.Process().children(recursive=True)) <= set(others)
    left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    assert [line for line in left if line and "86399.5" in line] == []


def test_where_the_kernel_refuses_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = tmp_path / "launcher.py"
    source = Path(code.__file__).read_text()
    assert source.count('_call("unshare", flags') == 2
    launcher.write_text(source.replace('_call("unshare", flags', '_call("unshare", -1 * flags'))
    monkeypatch.setattr(code, "__file__", str(launcher))
    with pytest.raises(IftError) as error:
        run("", "")
    assert str(error.value).splitlines()[:2] == [
        "programs cannot be isolated here, so none is run: [Errno 22] Invalid argument: 'unshare'",
        "  wanted: Linux 5.12 or later that lets this user make namespaces",
    ]


# the program in an answer


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("Sure!\n```python\nx = 1\n```\nThis sets x.", "x = 1\n"),
        ("```bash\npip install x\n```\n```py\nx = 1\n```\n```python\nprint(x)\n```", "x = 1\n"),
        ("~~~Python title\nx = 1\n~~~", "x = 1\n"),
        ("```python\nx = 1\ny =", "x = 1\ny ="),  # cut off
        ("1. So:\n   ```python\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1\n"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),  # a fence within a longer fence
        ("```python\n```", ""),
        ("", ""),
        ("def f():\n    '''Say `f`.'''\n", "def f():\n    '''Say `f`.'''\n"),
    ],
)
def test_extract(answer: str, program: str) -> None:
    assert extract(answer) == program
