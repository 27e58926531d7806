"""All benchmarks in one run: one table, one JSON. `make bench` takes those of a CPU that are done in 20 minutes.

In:  which of them, in which size; minutes.
Out: a table in Markdown of what was measured, beside what, and the ratio; the machine; versions; the same as JSON.

    .venv/bin/python benchmarks/run.py                                   # make bench
    .venv/bin/python benchmarks/run.py --size long                       # make bench-long: some hours
    .venv/bin/python benchmarks/run.py attention tracking --size try     # does it run at all?

Each benchmark is a script of its own in a process of its own, one after the other; what it prints goes to a log in the
work folder. One that fails, or for which no time is left, is named with its reason, and the rest goes on. A GPU's has
its own command: `make bench-gpu`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
from common import HOUSE, table

SIZES = ("short", "long", "try")


@dataclass(frozen=True)
class Line:
    """One thing that was measured. `ratio` is ours to the other's, so that more is better or worse as `what` says."""

    benchmark: str
    what: str
    ours: float
    unit: str
    beside: str = ""
    other: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None

    def cells(self) -> list[str]:
        between = (
            f" ({self.low:.2f} – {self.high:.2f})" if self.low is not None and self.low != self.high else ""
        )
        return [
            self.benchmark,
            self.what,
            f"{_digits(self.ours)} {self.unit}",
            f"{self.beside}: {_digits(self.other)} {self.unit}" if self.other is not None else self.beside,
            f"{self.ratio:.2f}{between}" if self.ratio is not None else "",
        ]


def _digits(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# What each script's JSON says.


def attention(found: Mapping[str, Any]) -> Iterator[Line]:
    """Passes over a pack, document by document and under a mask of the whole."""
    for average, of in found["results"].items():
        ours, other = (common.spread(of["cpu_seconds"][path]).median for path in ("packed", "sdpa"))
        yield Line(
            "attention",
            f"a pass, documents of {average} tokens: how many times faster",
            ours,
            "CPU s",
            "transformers' sdpa",
            other,
            of["ratio"]["median"],
            of["ratio"]["low"],
            of["ratio"]["high"],
        )


def tracking(found: Mapping[str, Any]) -> Iterator[Line]:
    """A step with a tracker beside it."""
    none = found["results"]["no tracker"]["seconds"]["median"]
    for name, of in found["results"].items():
        if name != "no tracker":
            beside = of["seconds"]["to_none"]
            yield Line(
                "tracking",
                f"a step, MLflow {name}: times as long",
                of["seconds"]["median"],
                "s",
                "no tracker",
                none,
                beside["median"],
                beside["low"],
                beside["high"],
            )


def evaluating(found: Mapping[str, Any]) -> Iterator[Line]:
    """Generation and ranking."""
    for row in found["results"]:
        yield Line(
            "evaluating",
            f"{row['what']} ({row['outputs']}): how many times faster",
            row["ours_s"],
            "s",
            row["beside"],
            row["its_s"],
            row["ratio"],
            row["from"],
            row["to"],
        )


def prepare(found: Mapping[str, Any]) -> Iterator[Line]:
    """Rows a second of a core."""

    def rate(name: str, cores: int) -> float:
        return common.spread(run["rows"] / run["seconds"] / cores for run in found[name]).median

    cores = found["machine"]["cores"]
    for name, what in (("prepare", "from nothing"), ("again", "from its cache")):
        for peer, words, on in (
            ("trl", "TRL", 1),
            ("datasets", "datasets.map", cores),
            ("tokenizer", "the tokenizer alone", 1),
        ):
            ours, other = rate(name, cores), rate(peer, on)
            yield Line(
                "prepare", f"{what}: times the rows", ours, "rows/s a core", words, other, ours / other
            )
    peak = max(run["largest"][0]["resident"] for run in found["prepare"])
    yield Line("prepare", f"{found['rows']:,} rows: the largest process", peak / 2**30, "GiB")


def plan(found: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    """Planned memory to the measured peak."""
    for of in found:
        again = ", activations again" if of["again"] else ""
        yield Line(
            "plan",
            f"{of['model']}, {of['workers']} × ZeRO-{of['stage']}, {of['method']}{again}: plan to peak",
            of["planned"] / 2**30,
            "GiB",
            "the kernel's peak",
            of["peak"] / 2**30,
            of["ratio"],
        )


def training(found: Mapping[str, Any]) -> Iterator[Line]:
    """Tokens a second beside each other arm; the vocabulary's projection."""
    for case in found["results"]["cases"]:
        arms = case["arms"]
        ours = arms["ours"]
        if "skipped" in ours:
            raise ValueError(ours["skipped"])
        words = f"{case['model']}, {case['lengths']}: times the tokens"
        for name, arm in arms.items():
            if name == "ours":
                continue
            mine = ours["tokens_a_second"]["median"]
            if "skipped" in arm:
                yield Line("training", words, mine, "tokens/s", f"{name} skipped: {arm['skipped']}")
            else:
                other = arm["tokens_a_second"]["median"]
                yield Line("training", words, mine, "tokens/s", name, other, mine / other)
    for model, of in found["results"]["logits"].items():
        for share in of.get("shares", ()):
            if "seconds" in share["supervised"] and "seconds" in share["all"]:
                one, other = (share[kind]["seconds"] for kind in ("supervised", "all"))
                beside = common.ratios(other, one)
                what = f"{model}, a pass, {share['share']:.0%} supervised: how many times faster"
                ours, whole = common.spread(one).median, common.spread(other).median
                yield Line(
                    "training", what, ours, "s", "all logits", whole, beside.median, beside.low, beside.high
                )


def overhead(found: Mapping[str, Any]) -> Iterator[Line]:
    """A run's steps beside the bare engine's; starts and restarts."""
    results = found["results"]
    if steps := results.get("steps"):
        bare = common.spread(steps["bare"]).median
        for name, values in steps.items():
            if name != "bare":
                beside, ours = common.ratios(values, steps["bare"]), common.spread(values).median
                what = f"a step, {name}: times as long"
                yield Line(
                    "overhead", what, ours, "s", "the bare loop", bare, beside.median, beside.low, beside.high
                )
    for name, of in results.get("starts", {}).items():
        yield Line("overhead", f"`ift run` to its first step, {name}", of["seconds"], "s")
    for name, of in results.get("restarts", {}).items():
        yield Line("overhead", f"kill -9 of {name} to the next new step", of["seconds"], "s")


@dataclass(frozen=True)
class Benchmark:
    """A script, what it is asked for in each size, and what its JSON says."""

    script: str
    arguments: Mapping[str, str]  # by size; a size that it is not part of is left out
    minutes: Mapping[str, float]  # that it took, or may take, on two quiet cores
    read: Callable[[Any], Iterator[Line]]


_TRL = "--trl-python build/benchmark/trl/bin/python"  # prepare.py makes that environment
BENCHMARKS: dict[str, Benchmark] = {
    "prepare": Benchmark(
        "prepare.py",
        {
            "short": "--rows 20000 --peer-rows 5000",
            "long": "--rows 1000000",
            "try": "--rows 500 --peer-rows 200",
        },
        {"short": 5, "long": 60, "try": 3},
        prepare,
    ),
    "training": Benchmark(
        "gpu/train.py",
        {
            "short": f"--models 135M --lengths dialogsum --length 1024 --batch 1 --steps 3 --warm 1 --rounds 1 "
            f"--arms ours bare trl trl-padded trainer --shares 0.1 1.0 --threads 2 {_TRL}",
            "long": f"--models 135M --length 1024 --batch 4 --steps 5 --rounds 3 "
            f"--arms ours bare trl trl-padded trainer --threads 2 {_TRL}",
            "try": f"--models tiny --lengths flan --length 128 --batch 2 --steps 2 --warm 1 --rounds 1 "
            f"--arms ours trl trainer --shares 0.1 --threads 1 --peak-size 128 {_TRL}",
        },
        {"short": 6, "long": 180, "try": 3},
        training,
    ),
    "evaluating": Benchmark(
        "evaluating.py",
        {
            "short": "--prompts 16 --questions 20 --rounds 1",
            "long": "--rounds 3",
            "try": "--prompts 2 --questions 2 --rounds 1",
        },
        {"short": 2, "long": 15, "try": 1},
        evaluating,
    ),
    "attention": Benchmark(
        "attention.py",
        {
            "short": "--layers 10 --rounds 3",
            "long": "",
            "try": "--layers 1 --rounds 1 --tokens 256 --averages 40",
        },
        {"short": 1, "long": 10, "try": 1},
        attention,
    ),
    "tracking": Benchmark(
        "tracking.py",
        {"short": "--rounds 5 --steps 30", "long": "", "try": "--rounds 1 --steps 3"},
        {"short": 2, "long": 5, "try": 1},
        tracking,
    ),
    "overhead": Benchmark(
        "overhead.py",
        {
            "short": "starts restarts --model tiny --length 128 --steps 9 --rounds 1",
            "long": "",
            "try": "restarts --model tiny --length 128 --steps 6 --rounds 1",
        },
        {"short": 3, "long": 45, "try": 2},
        overhead,
    ),
    "plan": Benchmark(
        "plan.py",
        {
            "short": "--model tiny --cases 1:0:full 2:2:full 2:3:lora --length 128 --steps 2",
            "long": "",
            "try": "--model tiny --cases 1:0:full --length 64 --steps 1",
        },
        {"short": 1, "long": 30, "try": 1},
        plan,
    ),
}


def run(name: str, size: str, work: Path, *, timeout: float) -> tuple[list[Line], str]:
    """One of them: what it measured, or why not."""
    benchmark, output = BENCHMARKS[name], work / f"{name}.json"
    output.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(HOUSE / "benchmarks" / benchmark.script),
        *benchmark.arguments[size].split(),
    ]
    with (work / f"{name}.log").open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                [*command, "--output", str(output)], stdout=log, stderr=log, cwd=HOUSE, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return [], f"not done in {timeout / 60:.0f} minutes"
    if done.returncode:
        return [], f"ended with {done.returncode}; see {log.name}"
    text = output.read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()] if name == "plan" else json.loads(text)
    try:
        return list(benchmark.read(found)), ""
    except (KeyError, ValueError) as error:
        return [], f"{type(error).__name__}: {error}; see {log.name}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run them, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="BENCHMARK", help=f"of {', '.join(BENCHMARKS)}; all of them"
    )
    parser.add_argument("--size", choices=SIZES, default="short")
    parser.add_argument("--minutes", type=float, help="for all of them; 20 for short ones, else without end")
    parser.add_argument(
        "--work", type=Path, default=HOUSE / "build" / "benchmark", help="for logs (%(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, help="where to write the numbers as JSON  [default: WORK/SIZE.json]"
    )
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]} is no benchmark: {', '.join(BENCHMARKS)}")
    minutes = asked.minutes or (20.0 if asked.size == "short" else 24 * 60.0)
    asked.work.mkdir(parents=True, exist_ok=True)
    about, ends = common.machine(), time.monotonic() + 60 * minutes
    lines: list[Line] = []
    skipped: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in asked.names or BENCHMARKS:
        left = ends - time.monotonic()
        needed = BENCHMARKS[name].minutes[asked.size]
        if left < 30 * needed:  # half of what it may take
            skipped[name] = f"{left / 60:.0f} minutes are left, and it may take {needed:.0f}"
            continue
        print(f"{name}: about {needed:.0f} minutes", file=sys.stderr, flush=True)
        began = time.monotonic()
        found, why = run(name, asked.size, asked.work, timeout=left)
        seconds[name] = time.monotonic() - began
        lines += found
        if why:
            skipped[name] = why
            print(f"{name}: {why}", file=sys.stderr, flush=True)
    print(f"\n{common.machine_in_words(about)}; {sum(seconds.values()) / 60:.1f} minutes\n")
    rows = [line.cells() for line in lines] + [
        [name, f"left out: {why}", "", "", ""] for name, why in skipped.items()
    ]
    print(table(["benchmark", "what", "ours", "beside", "ratio"], rows))
    results = {
        "lines": [asdict(line) for line in lines],
        "left_out": skipped,
        "seconds": seconds,
        "began": about,
    }
    packages = ("ift", "torch", "transformers", "deepspeed", "ray", "mlflow", "tokenizers", "pyarrow")
    common.write(
        asked.output or asked.work / f"{asked.size}.json", results, asked=vars(asked), packages=packages
    )
    if skipped and not lines:
        sys.exit(1)


if __name__ == "__main__":
    main()
