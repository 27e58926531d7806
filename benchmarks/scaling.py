"""The tables and the plot of docs/scaling.md: a step on 8 to 1,024 GPUs, and how near published runs are.

In:  nothing: the shapes of Llama 3.1, and rates that stand in ift/models/scaling.py.
Out: the tables in Markdown; with `--write` they replace those in docs/scaling.md, and docs/scaling.svg is drawn anew.

    .venv/bin/python benchmarks/scaling.py            # print
    .venv/bin/python benchmarks/scaling.py --write    # after a change of the model

Each row is what `ift plan` says for such a machine; a test holds the document to this script and this script to
`ift plan`. No GPU is needed, and no network.
"""

import argparse
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HOUSE, table

from ift import planning
from ift.models import known, scaling, speed
from ift.models import plan as plans
from ift.models import shape as shapes
from ift.models.plan import GIB, Asked, Plan
from ift.models.shape import Shape, Way

DOCUMENT = HOUSE / "docs" / "scaling.md"
PLOT = HOUSE / "docs" / "scaling.svg"
MODELS = {
    "8B": "meta-llama/Llama-3.1-8B",
    "70B": "meta-llama/Llama-3.1-70B",
    "405B": "meta-llama/Llama-3.1-405B",
}
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
NETWORKS = (100, 400, 1600, 3200)  # Gbit/s of a node
LENGTH, PACKS = 4096, 1024
DEVICE, GPU_GIB, HOST_GIB, TOGETHER = "H100", 80, 2000, 8
ASKED = Asked("full", offload="none")
_BATCHES = (128, 1024)


@functools.cache
def model(name: str) -> tuple[Shape, dict[str, Way]]:
    """The shape of one of Llama 3.1, and what training all of it keeps."""
    config = shapes.built(name, known.config(MODELS[name]) or {})
    shape = shapes.shape_of(config, MODELS[name].partition("/")[2])
    way = shapes.way_of(
        config,
        shape,
        adapter=None,
        precision="bf16",
        attention="varlen",
        length=LENGTH,
        written=math.ceil(LENGTH * planning.SHARE),
    )
    return shape, {"full": way}


@functools.cache
def planned(
    name: str,
    gpus: int,
    *,
    network: float = NETWORKS[-1],
    packs: int = PACKS,
    asked: Asked = ASKED,
) -> Plan:
    """What `ift plan` finds: all weights, nothing offloaded, packs of `LENGTH`."""
    shape, ways = model(name)
    machine = planning.described_machine(
        gpus=gpus,
        gpu_memory=GPU_GIB,
        nodes=max(1, gpus // TOGETHER),
        host_memory=HOST_GIB,
        workers=None,
        global_batch=packs,
        gpu=DEVICE,
        network=network,
    )
    return plans.plan(
        shape,
        ways,
        length=LENGTH,
        global_batch=packs,
        supervised_share=planning.SHARE,
        machine=machine,
        asked=asked,
        precision="bf16",
    )


# The tables.


def sizes() -> str:
    """Model by number of GPUs: what is chosen, its memory, its time."""
    rows = []
    for name in MODELS:
        first = None
        for gpus in GPUS:
            found = planned(name, gpus)
            said = planning.predicted(found)
            if said is None or found.choice is None:
                needed = min(plans.size_of(c) for c in found.considered if c.memory)
                rows.append([name, f"{gpus:,}", "does not fit", f"{needed / GIB:,.0f}", "", "", "", "", ""])
                continue
            rate = said["tokens_a_second_and_worker"]
            first = first or rate
            rows.append(
                [
                    name,
                    f"{gpus:,}",
                    _short(found),
                    f"{plans.size_of(found.of(found.choice)) / GIB:.0f}",
                    f"{said['seconds_a_step']:,.1f}",
                    f"{said['waiting'] / said['seconds_a_step']:.0%}",
                    f"{rate:,.0f}",
                    f"{said['mfu']:.0%}",
                    f"{rate / first:.0%}",
                ]
            )
    head = [
        "model",
        "GPUs",
        "choice",
        "GiB a GPU",
        "s a step",
        "waiting",
        "tokens/s a GPU",
        "MFU",
        "of the first",
    ]
    return table(head, rows)


def _short(found: Plan) -> str:
    """`ZeRO-3, activations again, 4 × 2`: rounds and micro-batch."""
    choice = found.choice
    assert choice is not None
    rounds = math.ceil(math.ceil(found.global_batch / found.machine.workers) / choice.micro_batch)
    again = ", activations again" if choice.activation_checkpointing else ""
    return f"ZeRO-{choice.zero_stage}{again}, {rounds} × {choice.micro_batch}"


def networks() -> str:
    """The same on slower networks, and on a smaller batch."""
    rows = []
    for packs in _BATCHES:
        for name, gpus in (("8B", 64), ("8B", 128), ("70B", 128), ("405B", 1024)):
            cells: list[object] = [f"{packs:,}", name, f"{gpus:,}"]
            for network in NETWORKS:
                found = planned(name, gpus, network=network, packs=packs)
                said = planning.predicted(found)
                idle = f", {found.machine.idle} idle" if found.machine.idle else ""
                cells.append(
                    "does not fit"
                    if said is None
                    else f"{said['tokens_a_second_and_worker']:,.0f} ({_short(found)}{idle})"
                )
            rows.append(cells)
    return table(["packs a step", "model", "GPUs", *(f"{n:,} Gbit/s" for n in NETWORKS)], rows)


def volumes() -> str:
    """Gigabytes that each GPU sends in a step."""
    rows = []
    for name in MODELS:
        shape, _ = model(name)
        for stage in (1, 2, 3):
            paper = (4 if stage < 3 else 6) * shape.parameters
            cells = [name, stage, f"{paper / 1e9:,.0f}"]
            for rounds in (1, 8):
                run = scaling.Run(stage, 10**6, 10**5, rounds, 1, LENGTH)
                moved = sum(c.moved(run.workers) for c in scaling.collectives(shape, run))
                cells.append(f"{moved / 1e9:,.0f}")
            rows.append(cells)
    return table(["model", "stage", "the paper's", "here, one round", "here, eight rounds"], rows)


def limits() -> str:
    """Where stage 3's traffic and hops stop being hidden."""
    rows = []
    for device in ("A100", "H100"):
        cells = [device]
        for network in NETWORKS:
            rates = scaling.gpu_rates(device, network=network)
            cells.append(f"{scaling.hiding_tokens(rates, nodes=2):,.0f}")
        rates = scaling.gpu_rates(device)
        cells += [f"{scaling.hiding_workers(model(name)[0], rates, tokens=LENGTH):,.0f}" for name in MODELS]
        rows.append(cells)
    head = ["GPU", *(f"tokens at {n:,} Gbit/s" for n in NETWORKS), *(f"GPUs, {name}" for name in MODELS)]
    return table(head, rows)


# Published runs. All are of stage 3 as torch's FSDP has it, without DeepSpeed's hooks, and of every token supervised.


def mpt(parameters: int, layers: int, hidden: int, vocabulary: int = 50_368) -> Shape:
    """A model of MPT's kind, whose embeddings are its projection."""
    return Shape(
        name="MPT",
        kind="mpt",
        parameters=parameters,
        embedding=vocabulary * hidden,
        layer=12 * hidden**2,
        largest=vocabulary * hidden,
        linear=parameters - vocabulary * hidden,
        experts=0,
        active=parameters - vocabulary * hidden,
        layers=layers,
        hidden=hidden,
        intermediate=4 * hidden,
        heads=hidden // 128,
        kv_heads=hidden // 128,
        head=128,
        vocabulary=vocabulary,
        tied=True,
        encoder_decoder=False,
    )


SHAPES: dict[str, Callable[[], Shape]] = {
    "MPT-3B": lambda: mpt(2_651_837_440, 32, 2560),
    "MPT-7B": lambda: mpt(6_658_859_008, 32, 4096),
    "MPT-13B": lambda: mpt(12_853_954_560, 40, 5120),
    "MPT-30B": lambda: mpt(29_975_214_080, 48, 7168),
    "MPT-70B": lambda: mpt(64_862_437_376, 80, 8192),
    "Llama-3-8B": lambda: model("8B")[0],
    "Llama-3-70B": lambda: model("70B")[0],
}


@dataclass(frozen=True)
class Published:
    """One published run: on eight GPUs a node, `network` Gbit/s each, `rounds` of `micro_batch` rows of `length`."""

    where: str
    device: str
    network: float
    model: str
    gpus: int
    length: int
    micro_batch: int
    rounds: int
    again: bool
    tokens: float  # a second and GPU
    stage: int = 3

    def predicted(self) -> float:
        """Tokens a second and GPU by the model."""
        rows = self.micro_batch * self.rounds
        run = scaling.Run(
            stage=self.stage,
            workers=self.gpus,
            nodes=max(1, self.gpus // TOGETHER),
            rows=rows,
            micro_batch=self.micro_batch,
            length=self.length,
            again=self.again,
            hooked=False,
        )
        rates = scaling.gpu_rates(self.device, network=self.network)
        return rows * self.length / scaling.step_of(SHAPES[self.model](), rates, run).seconds


_F, _T = "llm-foundry", "torchtitan"
# The first of each GPU is the one that SHARES was fitted to.
PUBLISHED = (
    Published(_F, "H100", 3200, "MPT-7B", 8, 2048, 6, 1, False, 10_643),
    Published(_F, "H100", 3200, "MPT-7B", 128, 2048, 6, 1, False, 10_475),
    Published(_F, "H100", 3200, "MPT-7B", 256, 2048, 6, 1, False, 10_119),
    Published(_F, "H100", 3200, "MPT-7B", 512, 2048, 6, 1, False, 9_670),
    Published(_F, "H100", 3200, "MPT-7B", 8, 4096, 16, 2, True, 8_611),
    Published(_F, "H100", 3200, "MPT-3B", 64, 2048, 6, 3, False, 22_525),
    Published(_F, "H100", 3200, "MPT-3B", 512, 2048, 8, 1, False, 21_664, stage=2),
    Published(_F, "H100", 3200, "MPT-13B", 8, 2048, 2, 1, False, 4_792),
    Published(_F, "H100", 3200, "MPT-13B", 64, 2048, 2, 1, False, 4_800),
    Published(_F, "H100", 3200, "MPT-13B", 512, 2048, 16, 1, True, 4_952),
    Published(_F, "H100", 3200, "MPT-30B", 8, 2048, 3, 21, True, 2_002),
    Published(_F, "H100", 3200, "MPT-30B", 512, 2048, 8, 1, True, 2_115),
    Published(_F, "H100", 3200, "MPT-70B", 32, 2048, 2, 16, True, 882),
    Published(_F, "H100", 3200, "MPT-70B", 64, 2048, 8, 4, True, 1_039),
    Published(_F, "H100", 3200, "MPT-70B", 512, 2048, 8, 1, True, 1_007),
    Published(_T, "H100", 3200, "Llama-3-8B", 8, 8192, 2, 1, False, 5_762),
    Published(_T, "H100", 3200, "Llama-3-8B", 128, 8192, 2, 1, False, 5_605),
    Published(_F, "A100", 1600, "MPT-7B", 8, 2048, 6, 2, False, 4_641),
    Published(_F, "A100", 1600, "MPT-7B", 128, 2048, 18, 1, True, 3_623),
    Published(_F, "A100", 1600, "MPT-13B", 128, 2048, 16, 1, True, 1_972),
    Published(_F, "A100", 1600, "MPT-30B", 128, 2048, 6, 1, True, 865),
    Published(_F, "A100", 1600, "MPT-70B", 64, 2048, 8, 4, True, 410),
    Published(_F, "A100", 1600, "MPT-70B", 64, 2048, 2, 1, True, 276),
    Published(_F, "A100", 1600, "MPT-70B", 128, 2048, 4, 1, True, 376),
    Published(_T, "A100", 1600, "Llama-3-70B", 64, 8192, 1, 1, True, 331),
)


def published() -> str:
    """Published runs beside what the model says of them."""
    rows = []
    for run in PUBLISHED:
        predicted = run.predicted()
        rows.append(
            [
                run.where,
                run.model,
                f"{run.gpus} × {run.device}",
                f"{run.rounds} × {run.micro_batch} × {run.length:,}",
                "yes" if run.again else "",
                f"{run.tokens:,.0f}",
                f"{predicted:,.0f}",
                f"{predicted / run.tokens:.2f}",
            ]
        )
    head = ["from", "model", "GPUs", "rounds × rows × tokens", "again", "published", "predicted", "ratio"]
    return table(head, rows)


def peaks() -> str:
    """The GPUs that are known."""
    rows = []
    for name, value in speed.PEAKS.items():
        rates = scaling.gpu_rates(name)
        rows.append(
            [
                name,
                f"{value / 1e12:,.1f}".removesuffix(".0"),
                f"{rates.operations / value:.2f}",
                f"{rates.near / 1e9:,.0f}",
            ]
        )
    return table(["GPU", "peak, TFLOP/s", "share reached", "GB/s to its node"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "sizes": sizes,
    "networks": networks,
    "volumes": volumes,
    "limits": limits,
    "published": published,
    "peaks": peaks,
}


def filled(text: str) -> str:
    """A document with its tables made anew: what stands between `<!-- table NAME -->` and `<!-- end -->`."""

    def fill(found: re.Match[str]) -> str:
        return f"<!-- table {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def plot(path: Path) -> None:
    """Tokens a second and GPU over the number of GPUs, on the fastest and on the slowest network."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(7, 4.2))
        for colour, name in enumerate(MODELS):
            for network, line in ((NETWORKS[-1], "-"), (NETWORKS[1], "--"), (NETWORKS[0], ":")):
                points = []
                for gpus in GPUS:
                    said = planning.predicted(planned(name, gpus, network=network))
                    if said is not None:
                        points.append((gpus, 100 * said["mfu"]))
                axes.plot(
                    *zip(*points, strict=True),
                    line,
                    color=f"C{colour}",
                    marker=".",
                    label=f"{name}, {network:,} Gbit/s a node",
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(GPUS, [f"{n:,}" for n in GPUS])
        axes.set_ylim(0)
        axes.set_xlabel(f"{DEVICE} GPUs; {PACKS:,} packs of {LENGTH:,} tokens a step")
        axes.set_ylabel("MFU, %")
        axes.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md and docs/scaling.svg")
    asked: Any = parser.parse_args(arguments)
    if asked.write:
        DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
        plot(PLOT)
        print(f"{DOCUMENT}\n{PLOT}")
        return
    for name, make in TABLES.items():
        print(f"\n{name}\n\n{make()}")


if __name__ == "__main__":
    main()
