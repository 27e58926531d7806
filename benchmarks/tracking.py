"""What tracking costs a training step: no tracker at all, MLflow in health, MLflow dead, hanging, answering errors.

In:  how many rounds, how many steps in each.
Out: a table of step times and of their ratio to those without a tracker; the same as JSON.

    .venv/bin/python benchmarks/tracking.py --output tracking.json
    .venv/bin/python benchmarks/tracking.py --rounds 2 --steps 10          # a try

The steps are those of a small random Llama, in the very process that holds the tracker: harder on it than a run, where
the workers are processes of their own. In each round all conditions take turns, in another order each time; a ratio is
to the same round without a tracker. Seconds are those of a clock, since waiting is what is looked for: of each round
the lower quartile, as the slower steps tell of what else the machine does. Beside them the median of the CPU seconds of
the training thread.
"""

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from common import ratios, spread, table, write

from ift import storage
from ift.data.stream import Pack
from ift.tracking.client import mlflow_client
from ift.tracking.run import Tracker
from ift.train.loss import collate, loss_sum

_NONE = "no tracker"


# The step.


def model_of(hidden: int, layers: int) -> Any:
    """A random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def pack_of(tokens: int) -> Pack:
    """One document, a fifth of it supervised."""
    rng = random.Random(0)
    return Pack(
        tokens=[rng.randrange(3, 500) for _ in range(tokens)],
        supervised=[i >= tokens * 4 // 5 for i in range(tokens)],
        lengths=[tokens],
        examples=["0"],
        tasks=["random"],
        templates=["none"],
    )


def steps(
    model: Any, pack: Pack, count: int, folder: Path, wake: Callable[[], None]
) -> Iterator[tuple[float, float]]:
    """Seconds and CPU seconds of each of `count` steps, the line that it leaves and the tracker's waking included."""
    batch = collate([pack], "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for step in range(count):
        began, cpu = time.perf_counter(), time.thread_time()
        loss, _ = loss_sum(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        line = {"step": step, "loss": loss.item(), "lr": 1e-5, "grad_norm": 1.0, "supervised_tokens": 51}
        line |= {"tokens": 256, "seconds": time.perf_counter() - began, "time": time.time()}
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(storage.json_line(line))
        wake()
        yield time.perf_counter() - began, time.thread_time() - cpu


# The servers.


@contextmanager
def healthy(folder: Path) -> Iterator[str]:
    """An MLflow server on SQLite."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("w") as log:
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=quiet, start_new_session=True)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.2)
        mlflow_client(uri).search_experiments()
        yield uri
    finally:
        os.killpg(server.pid, 9)
        server.wait()


@contextmanager
def dead(folder: Path) -> Iterator[str]:
    """A port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def hanging(folder: Path) -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@contextmanager
def failing(folder: Path) -> Iterator[str]:
    """A server that answers 500 to everything."""

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


_SERVERS = {"healthy": healthy, "dead": dead, "hangs": hanging, "answers 500": failing}


def measure(
    model: Any, pack: Pack, count: int, uri: str | None, work: Path, *, arrives: bool = False
) -> tuple[float, float]:
    """The lower quartile of the steps in seconds, where others disturb least; their median in CPU seconds."""
    folder = Path(tempfile.mkdtemp(dir=work))
    tracker = None
    if uri:
        tracker = Tracker(folder, uri, "benchmark", folder.name, notify=lambda _: None, system_every=10.0)
        tracker.start({"steps": count}, {})
        time.sleep(1)  # for its first attempt
    taken = list(steps(model, pack, count, folder, tracker.wake if tracker else lambda: None))
    if tracker and tracker.close(timeout=60 if arrives else 0.1) != arrives:
        sys.exit(f"MLflow at {uri}: not what was wanted of it")
    seconds, cpu = zip(*taken, strict=True)
    return statistics.quantiles(seconds, n=4)[0], statistics.median(cpu)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60, help="in each round, of each condition")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, pack = model_of(asked.hidden, asked.layers), pack_of(256)
    mlflow_client("http://127.0.0.1:9")  # imports MLflow, which a run does while it prepares
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (_NONE, *_SERVERS)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        uris: dict[str, str | None] = {_NONE: None}
        uris |= {name: stack.enter_context(server(work)) for name, server in _SERVERS.items()}
        measure(model, pack, 5, None, work)
        for turn in range(asked.rounds):
            order = list(uris)
            random.Random(turn).shuffle(order)
            for name in order:
                one = measure(model, pack, asked.steps, uris[name], work, arrives=name == "healthy")
                found[name].append(one)
    results, rows = {}, []
    for name, taken in found.items():
        row = results[name] = {}
        cells = [name]
        for place, what in enumerate(("seconds", "cpu_seconds")):
            values = [of[place] for of in taken]
            beside = ratios(values, [none[place] for none in found[_NONE]])
            row[what] = {"median": spread(values).median, "to_none": vars(beside), "all": values}
            cells += [f"{1000 * spread(values).median:.1f}"]
            cells += (
                [f"{beside.median:.3f}", f"{beside.low:.3f} – {beside.high:.3f}"]
                if name != _NONE
                else ["", ""]
            )
        rows.append(cells)
    head = ["MLflow", "step, ms", "to no tracker", "from – to", "CPU, ms", "to no tracker", "from – to"]
    print(table(head, rows))
    write(asked.output, results, asked=vars(asked), packages=("ift", "torch", "mlflow"))


if __name__ == "__main__":
    main()
