"""Ranks for the tests of training: processes with a gloo group, which start in no time.

`spawn` imports torch, transformers and DeepSpeed anew in each process (15 s of a core). Here they are imported once, in
a process without threads, and each rank is a fork of it.
"""

import gc
import logging
import os
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.multiprocessing

_ONCE = [
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # compiles something as it is imported
    "ift.train.engine",
]


def run(target: Callable[..., None], world: int, folder: Path, *args: Any) -> None:
    """`target(rank, world, *args)` on each rank; the group meets in `folder`."""
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(_ONCE)
    meeting = folder / f"meeting-{uuid.uuid4().hex}"
    torch.multiprocessing.start_processes(
        _rank, args=(target, world, meeting, args), nprocs=world, start_method="forkserver"
    )


def _rank(rank: int, target: Callable[..., None], world: int, meeting: Path, args: tuple[Any, ...]) -> None:
    import torch.distributed as dist

    gc.freeze()  # DeepSpeed collects garbage often, and none is among what was imported
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    target(rank, world, *args)
    dist.destroy_process_group()
