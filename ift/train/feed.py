"""Packs to a worker: which are its own, and how they come.

In:  the stream's folder, this rank's part of it, the steps to do.
Out: the packs in order, read ahead by Ray Data.

    part = Part(global_batch=4, packs=89, rank=0, world=2, micro_batch=1)
    packs = carried(stream_dir, part, range(12, 23))    # from step 12 on, at once
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ift.data.stream import Pack, Stream
from ift.train.loop import ranks_packs


@dataclass(frozen=True)
class Part:
    """What one rank sees of the stream, as numbers: no list of packs, so that any step is as near as the first."""

    global_batch: int
    packs: int
    rank: int
    world: int
    micro_batch: int

    def of(self, step: int) -> list[list[int]]:
        """The packs of a step, as micro-batches."""
        return ranks_packs(
            step,
            global_batch=self.global_batch,
            packs=self.packs,
            rank=self.rank,
            world=self.world,
            micro_batch=self.micro_batch,
        )


# Of Ray: where workers reserve whole CPUs, a task that asks for one may wait for ever. So they leave a tenth.
WORKER_CPUS, CPUS = 0.9, 0.02
_PACKS_A_READ = 64  # about what a row group holds
_BLOCKS = 512  # of Ray Data: each costs about 2 ms before the first one is read
_AHEAD = 4  # reads that wait for the training step that needs them


def carried(stream_dir: Path, part: Part, steps: range) -> Iterator[Pack]:
    """The packs of these steps in order, read ahead by Ray Data tasks on whichever node has room.

    Each rank has a data set of its own, of step numbers, and not its shard of one that all ranks share
    (`ray.train.get_dataset_shard`): there blocks go to the rank that has had the fewest rows, a restart on fewer
    workers begins anew, and nothing says where an iterator stands (ray#37633). Here a read is a function of the step,
    the rank and the number of workers, so a resumed run starts at its step at once, and no node ever holds more than
    what is read ahead.
    """
    import ray.data

    if not steps:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 2**20  # handed on as soon as it is read
    each = max(1, _PACKS_A_READ * part.world // part.global_batch)
    reads = math.ceil(len(steps) / each)
    dataset = ray.data.read_datasource(
        _source(stream_dir, part, steps, each),
        num_cpus=CPUS,
        concurrency=_AHEAD,
        override_num_blocks=min(reads, _BLOCKS),  # as many as there are tasks, or blocks would be split
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_AHEAD):
        for row in table.to_pylist():
            yield Pack(**row)


def _source(stream_dir: Path, part: Part, steps: range, each: int) -> Any:
    """What Ray Data reads: some steps a task, in order; in pieces of `each` so many."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)

    class Steps(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> None:
            """Not known: nobody has to know."""

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            reads = math.ceil(len(steps) / each)
            borders = [each * (i * reads // parallelism) for i in range(parallelism + 1)]
            return [
                ReadTask(partial(_read, stream_dir, part, steps[first:end], each), unknown)
                for first, end in pairwise(borders)
            ]

    return Steps()


def _read(stream_dir: Path, part: Part, steps: range, each: int) -> Iterator[Any]:
    """The packs of these steps, a table for `each` so many."""
    import pyarrow as pa

    from ift.data.stream import SCHEMA

    stream = Stream(stream_dir)
    schema = pa.schema([SCHEMA.field(name) for name in Pack.__dataclass_fields__])
    for first in range(0, len(steps), each):
        numbers = [n for step in steps[first : first + each] for micro in part.of(step) for n in micro]
        yield pa.Table.from_pylist([vars(pack) for pack in stream.read(numbers)], schema)
