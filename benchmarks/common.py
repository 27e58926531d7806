"""What every benchmark says besides its numbers: the machine, the versions; and how numbers are put together.

In:  values that were measured.
Out: medians with what they lie between, tables in Markdown, one JSON file.

    print(table(["what", "s"], [["ours", f"{spread([3.1, 2.9]).median:.1f}"]]))
    write(Path("out.json"), results, asked=vars(arguments), packages=("torch", "ray"))
"""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

HOUSE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Spread:
    """The median of some values, and the lowest and the highest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} – {self.high:.2f})"


def spread(values: Iterable[float]) -> Spread:
    """Raises `statistics.StatisticsError` where there are none."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def ratios(one: Sequence[float], other: Sequence[float]) -> Spread:
    """One over the other, turn by turn: what disturbed a turn disturbed both."""
    return spread(a / b for a, b in zip(one, other, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lines of Markdown."""
    first, *others = (f"| {' | '.join(map(str, line))} |" for line in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *others])


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What the numbers hang on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    """The names of the GPUs that are here; torch is asked where it is there."""
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of the packages that are installed; None for one that is not."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in packages}


def machine_in_words(about: Mapping[str, Any]) -> str:
    """`AMD EPYC, 2 cores, 23.4 GiB, load 0.3`"""
    gpus = about["gpus"]
    words = [about["cpu"], f"{about['cores']} cores", f"{about['memory_bytes'] / 2**30:.1f} GiB"]
    words += [f"{len(gpus)} × {gpus[0]}"] if gpus else []
    return ", ".join([*words, f"load {about['load'][0]:.1f}"])


def write(
    path: Path | None,
    results: Any,
    *,
    asked: Mapping[str, Any],
    packages: Iterable[str] = ("ift", "torch", "transformers", "deepspeed", "ray"),
) -> None:
    """The numbers and what they hang on as JSON; nothing where no `path` is given."""
    if path is None:
        return
    about = {"machine": machine(), "versions": versions(packages), "asked": dict(asked)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "results": results}, indent=1, default=str)
    path.write_text(text + "\n", encoding="utf-8")
