import errno
import fcntl
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ift.tracking.outbox import ARTIFACTS, LOCK, OUTBOX, Outbox

HERE = {"uri": "http://mlflow:5000", "experiment": "reviews"}


def opened(folder: Path, **identity: str) -> Outbox:
    outbox = Outbox(folder)
    outbox.open({**HERE, **identity})
    return outbox


def test_what_is_acknowledged_is_not_sent_again_by_a_later_process(tmp_path):
    outbox = opened(tmp_path)
    for step in range(4):
        outbox.append("metrics", step=step)
    read = outbox.lines(OUTBOX)
    next(read)
    end, line = next(read)
    assert (line["kind"], line["step"]) == ("metrics", 1)
    outbox.acknowledge(OUTBOX, end)
    later = opened(tmp_path)
    assert [line["step"] for _, line in later.lines(OUTBOX)] == [2, 3]
    assert later.pending() == 2
    assert not later.empty()


def test_another_address_begins_anew(tmp_path):
    outbox = opened(tmp_path)
    outbox.append("metrics", step=0)
    [(end, _)] = outbox.lines(OUTBOX)
    outbox.acknowledge(OUTBOX, end)
    assert opened(tmp_path).pending() == 0
    other = opened(tmp_path, uri="http://elsewhere:5000")
    assert other.pending() == 1
    assert other.state["key"] != outbox.state["key"]


def test_a_state_that_another_process_wrote_meanwhile_is_gone_on_with(tmp_path):
    early, other = opened(tmp_path), opened(tmp_path)  # both before anything was written
    other.append("metrics", step=0)
    with other.alone() as mine:
        assert mine
        other.state["run_id"] = "8c1e"
        [(end, _)] = other.lines(OUTBOX)
        other.acknowledge(OUTBOX, end)
    assert early.pending() == 1
    with early.alone() as mine:
        assert mine
        assert (early.state["run_id"], early.state["key"]) == ("8c1e", other.state["key"])
        assert early.pending() == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_each_address_keeps_its_run_whatever_is_sent_elsewhere_between(steps):
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, str] = {}
        for number, (address, deleted) in enumerate(steps):
            outbox = opened(Path(folder), uri=address)
            assert outbox.state["run_id"] == runs.get(address)
            if deleted:
                outbox.reset("uri", "experiment")
            if not outbox.state["run_id"]:
                outbox.state["run_id"] = f"{number}"
            runs[address] = outbox.state["run_id"]
            outbox.save()


def test_a_file_system_that_locks_nothing_ends_nothing(tmp_path, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told: list[str] = []
    with opened(tmp_path).alone(told.append) as mine:
        assert mine
    assert ["cannot be locked (No locks available)" in text for text in told] == [True]


def test_files_wait_at_a_position_of_their_own(tmp_path):
    outbox = opened(tmp_path)
    outbox.append("artifact", path=outbox.kept(tmp_path / "model" / "a.bin"))
    outbox.append("metrics", step=0)
    assert [line["path"] for _, line in outbox.lines(OUTBOX) if "path" in line] == ["model/a.bin"]
    assert outbox.kept(Path("/elsewhere/b")) == "/elsewhere/b"
    for end, _ in outbox.lines(OUTBOX):
        outbox.acknowledge(OUTBOX, end)
    assert outbox.pending() == 1
    for end, _ in outbox.lines(ARTIFACTS):
        outbox.acknowledge(ARTIFACTS, end)
    assert outbox.empty()


def test_lines_of_many_threads_stay_whole(tmp_path):
    outbox = opened(tmp_path)

    def tell(thread: int) -> None:
        for step in range(50):
            outbox.append("metrics", thread=thread, step=step, filler="x" * 5000)

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line for _, line in outbox.lines(OUTBOX)]
    assert len(lines) == 200
    for n in range(4):
        assert [line["step"] for line in lines if line["thread"] == n] == list(range(50))


def test_one_process_sends_at_a_time_and_a_killed_one_lets_go(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from ift.tracking.outbox import Outbox\n"
        "with Outbox(Path(sys.argv[1])).alone() as mine: print(mine, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with opened(tmp_path).alone() as mine:
            assert not mine
    finally:
        process.kill()
        process.wait()
    with opened(tmp_path).alone() as mine:
        assert mine
    assert (tmp_path / LOCK).exists()


def test_a_broken_state_is_as_good_as_none(tmp_path):
    (tmp_path / "tracking.json").write_text('{"uri": ')
    assert opened(tmp_path).state["run_id"] is None
    (tmp_path / "tracking.json").write_text(json.dumps({**HERE, "sent": None}))
    assert opened(tmp_path).state["sent"] == {}
