"""Full fine-tuning of Llama-shaped models on one GPU: ours beside TRL's best and transformers' Trainer with DeepSpeed,
and what supervised-only logits save.

In:  which models, which lengths of documents; the interpreter of TRL's environment where it has one of its own.
Out: tables in Markdown, and the numbers behind them as JSON.

    .venv/bin/python benchmarks/gpu/train.py --output gpu.json                       # 1B, 3B, 8B; an hour or two
    .venv/bin/python benchmarks/gpu/train.py --models 3B --lengths flan --steps 10   # a part of it
    .venv/bin/python benchmarks/gpu/train.py --models tiny --length 128 --batch 2 --steps 2    # a try, on a CPU too

Weights are random, documents of random tokens, their lengths drawn from the distributions in `work.py`; so nothing is
fetched. Each arm is a process of its own, one after the other, and they take turns in every round. Without a GPU the
same runs in fp32 on CPU. benchmarks/README.md says what is counted.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import common  # noqa: E402 - it lies a folder above
import torch  # noqa: E402
import work  # noqa: E402

from ift.train.trainer import KEEP_MEMORY  # noqa: E402

_HOUSE = HERE.parents[1]
ARMS = ("ours", "bare", "trl", "trl-padded", "trainer")
_PARTS = ("data", "forward", "backward", "optimizer", "communication")


def run(python: str, script: str, case: dict[str, Any], *, timeout: float) -> dict[str, Any]:
    """One process; what it printed last. `{"skipped": why}` where it failed or took too long: the others go on."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_HOUSE), os.environ.get("PYTHONPATH", "")]),
    }
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    if case.get("arm") == "ours" and not torch.cuda.is_available():
        environment |= KEEP_MEMORY  # as a run's workers have it
    if script == "theirs.py":
        environment.pop("PYTHONPATH")
    try:
        done = subprocess.run(
            [python, str(HERE / script), json.dumps(case)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"not done in {timeout / 60:.0f} minutes"}
    except FileNotFoundError:
        return {"skipped": f"there is no {python}"}
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        print(done.stderr, file=sys.stderr)
        return {"skipped": f"{script} ended with {done.returncode}: {last[-1]}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(arm: str, case: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """One arm once. Peers get the largest micro-batch that fits, without activation checkpointing where that does."""
    if arm in ("ours", "bare"):
        return run(sys.executable, "ours.py", {**case, "mode": "train", "arm": arm}, timeout=asked.timeout)
    result: dict[str, Any] = {"skipped": "nothing was tried"}
    sizes = [size for size in (16, 8, 4, 2, 1) if size <= case["batch"]]
    for again in (False, True):
        for size in sizes:
            peer, python = ("trainer", sys.executable) if arm == "trainer" else ("trl", asked.trl_python)
            theirs = {**case, "peer": peer, "packed": arm == "trl", "micro_batch": size, "again": again}
            result = run(python, "theirs.py", theirs, timeout=asked.timeout)
            if not result.get("out_of_memory"):
                return result
    return {"skipped": "out of memory with a micro-batch of one and activation checkpointing"}


def summary(runs: Sequence[dict[str, Any]], shape: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """Medians over all rounds: tokens a second, MFU, memory, the split. `{"skipped": why}` where every round failed."""
    good = [r for r in runs if "skipped" not in r]
    if not good:
        return {"skipped": runs[0]["skipped"]}
    rates = [sum(r["tokens"]) / sum(r["seconds"]) for r in good]
    flops = [
        work.operations(shape, tokens=sum(r["tokens"]), projected=sum(r["supervised"])) / sum(r["seconds"])
        for r in good
    ]
    found: dict[str, Any] = {
        "how": good[0]["how"],
        "tokens_a_second": vars(common.spread(rates)),
        "flops": common.spread(flops).median,
        "mfu": common.spread(flops).median / peak if peak else None,
        "peak_bytes": max(r["peak_bytes"] for r in good),
        "supervised": sum(good[0]["supervised"]) / sum(good[0]["tokens"]),
        "runs": list(runs),
    }
    if "split" in good[0]:
        found["split"] = {
            part: common.spread(r["split"][part] for r in good).median
            for part in _PARTS
            if good[0]["split"][part] is not None
        }
    return found


def table_of(results: dict[str, Any]) -> str:
    """A line an arm."""
    rows = []
    for (model, kind), arms in _by_case(results):
        best = max(
            (a["tokens_a_second"]["median"] for n, a in arms.items() if n.startswith("trl") and "how" in a),
            default=None,
        )
        for name, arm in arms.items():
            if "skipped" in arm:
                rows.append([model, kind, name, "–", "", "", "", "", f"skipped: {arm['skipped']}"])
                continue
            rate = arm["tokens_a_second"]["median"]
            split = arm.get("split")
            whole = sum(v for k, v in split.items() if k != "communication") if split else 0.0
            parts = " / ".join(f"{split.get(p, 0.0) / whole:.0%}" for p in _PARTS) if split else ""
            rows.append(
                [
                    model,
                    kind,
                    name,
                    f"{rate:,.0f}",
                    f"{arm['mfu']:.0%}" if arm["mfu"] else "",
                    f"{arm['peak_bytes'] / 2**30:.1f}",
                    f"{rate / best:.2f}" if best else "",
                    parts,
                    arm["how"],
                ]
            )
    head = [
        "model",
        "lengths",
        "arm",
        "tokens/s",
        "MFU",
        "peak, GiB",
        "to TRL's best",
        " / ".join(_PARTS),
        "how",
    ]
    return common.table(head, rows)


def _by_case(results: dict[str, Any]) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    return [((case["model"], case["lengths"]), case["arms"]) for case in results["cases"]]


def logits_table(results: dict[str, Any]) -> str:
    """What is saved where only supervised positions are projected."""
    rows = []
    for model, found in results["logits"].items():
        if "skipped" in found:
            rows.append([model, "", f"skipped: {found['skipped']}", "", "", "", ""])
            continue
        for line in found["shares"]:
            cells: list[object] = [model, f"{line['share']:.0%}"]
            ours, whole = line["supervised"], line["all"]
            for each in (ours, whole):
                if "skipped" in each:
                    cells += [each["skipped"], ""]
                else:
                    cells += [
                        f"{common.spread(each['seconds']).median:.3f}",
                        f"{each['peak_bytes'] / 2**30:.2f}",
                    ]
            both = "seconds" in ours and "seconds" in whole
            cells.append(f"{common.ratios(whole['seconds'], ours['seconds']).median:.2f}" if both else "")
            rows.append(cells)
    head = ["model", "supervised", "s", "GiB", "all logits, s", "GiB", "all / supervised"]
    return common.table(head, rows)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """All of it, in turns."""
    asked.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"peaks": [], "cases": [], "logits": {}}

    def peak() -> None:
        found = run(
            sys.executable, "ours.py", {"mode": "peak", "size": asked.peak_size}, timeout=asked.timeout
        )
        results["peaks"].append(found)

    peak()
    for name in asked.models:
        shape, folder = work.SHAPES[name], asked.work / name
        made = run(
            sys.executable,
            "ours.py",
            {"mode": "model", "shape": name, "model": str(folder)},
            timeout=asked.timeout,
        )
        if "skipped" in made:
            sys.exit(f"no model {name}: {made['skipped']}")
        base = {
            "model": str(folder), "shape": name, "length": asked.length, "batch": asked.batch, "steps": asked.steps,
            "warm": asked.warm, "seed": 0, "threads": asked.threads,
        }  # fmt: skip
        for kind in asked.lengths:
            runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in asked.arms}
            for turn in range(asked.rounds):
                for arm in asked.arms if turn % 2 == 0 else reversed(asked.arms):
                    runs[arm].append(measured(arm, {**base, "lengths": kind, "seed": turn}, asked))
                    said = runs[arm][-1].get("skipped") or runs[arm][-1]["how"]
                    print(f"{name} {kind} {arm}: {said}", file=sys.stderr, flush=True)
            results["cases"].append(
                {"model": name, "lengths": kind, "parameters": made["parameters"], "runs": runs}
            )
        results["logits"][name] = run(
            sys.executable,
            "ours.py",
            {**base, "mode": "logits", "shares": asked.shares},
            timeout=asked.timeout,
        )
        if not asked.keep:
            shutil.rmtree(folder)
    peak()
    good = [p["operations"] for p in results["peaks"] if "operations" in p]
    for case in results["cases"]:
        shape = work.SHAPES[case["model"]]
        case["arms"] = {
            arm: summary(of, shape, max(good, default=None)) for arm, of in case.pop("runs").items()
        }
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(work.SHAPES), default=["1B", "3B", "8B"])
    parser.add_argument("--lengths", nargs="+", choices=list(work.LENGTHS), default=list(work.LENGTHS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["ours", "trl", "trainer"])
    parser.add_argument("--length", type=int, default=4096, help="tokens of a pack (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="packs a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="that are counted (%(default)s)")
    parser.add_argument("--warm", type=int, default=3, help="steps before them (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="times that the arms take turns (%(default)s)")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5, 1.0], help="of supervised tokens"
    )
    parser.add_argument("--threads", type=int, help="of torch, on CPU")
    parser.add_argument("--peak-size", type=int, help="of the matrices of the peak")
    parser.add_argument("--trl-python", default=sys.executable, help="the interpreter of TRL's environment")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds of one arm")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "ift-gpu", help="for the models"
    )
    parser.add_argument("--keep", action="store_true", help="leave the models there")
    parser.add_argument("--output", type=Path, help="where to write the numbers as JSON")
    asked = parser.parse_args(arguments)
    results = measure(asked)
    about = common.machine()
    print(f"\n{common.machine_in_words(about)}")
    for place, found in zip(("before", "after"), results["peaks"], strict=True):
        rate = f"{found['operations'] / 1e12:,.2f} TFLOP/s" if "operations" in found else found["skipped"]
        print(f"matrix peak {place}: {rate}")
    print(f"\n{table_of(results)}\n\n{logits_table(results)}")
    packages = ("ift", "torch", "transformers", "deepspeed", "liger-kernel", "flash-attn", "trl")
    common.write(asked.output, results, asked=vars(asked), packages=packages)


if __name__ == "__main__":
    main()
