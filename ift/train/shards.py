"""Where DeepSpeed keeps what is trained: the only file that knows.

In:  DeepSpeed's engine: ZeRO 0 to 3, offloaded or not, all parameters trained or an adapter's alone.
Out: this rank's stretches of the fp32 weights and of Adam's moments, by parameter name; and the way back.

    save(engine, writer, step=40, meta={"seed": 17})
    load(another_engine, checkpoint.latest(place))

What the optimizer steps is a handful of flat tensors, in which parameters lie one behind the other, whole or in part:

    ZeRO-0        each parameter for itself, the same on all ranks
    ZeRO-1, -2    a group of parameters end to end, cut into as many parts as there are ranks
    ZeRO-3        each parameter cut into as many parts, and a rank's parts of a sub-group end to end
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ift.train import checkpoint
from ift.train.checkpoint import KINDS, Stretch

_STEPS = "optimizer_step"


@dataclass(frozen=True)
class _Flat:
    """A tensor that the optimizer steps; `holds` are (parameter, offset in it, start in the parameter, elements)."""

    number: int
    tensor: torch.Tensor
    holds: list[tuple[str, int, int, int]]


def save(engine: Any, writer: checkpoint.Writer, step: int, meta: Mapping[str, Any]) -> float:
    """Begin to save this rank's part; the seconds that training stood still. Every rank calls this."""
    return writer.save(step, stretches(engine), {**meta, _STEPS: steps_taken(engine)})


def load(engine: Any, found: checkpoint.Found) -> None:
    """Have the engine go on from there. Every rank calls this.

    Raises `BrokenCheckpoint` where a file is not what was written, `IftError` where it is of another model.
    """
    checkpoint.verify(found, rank=engine.global_rank, world=engine.world_size)
    dist.barrier()  # from here on all files have been looked at
    of = parameters(engine)
    restore(engine, lambda wanted: checkpoint.load(found, wanted, parameters=of), steps=found.meta[_STEPS])


def parameters(engine: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of all that is trained, on whichever rank; a tied parameter has its first name."""
    return {name: _shape(p) for name, p in _trained(engine)}


def steps_taken(engine: Any) -> int:
    """How often the optimizer has stepped: what Adam corrects its young moments by."""
    states = [state for state in _adam(engine).state.values() if state]
    return int(states[0]["step"]) if states else 0


def stretches(engine: Any) -> Iterator[Stretch]:
    """What this rank saves. Take each before the next: what lies on a disk is in memory only for a while."""
    flats = _flats(engine)
    if engine.zero_optimization_stage() == 0:
        flats = _share(flats, engine.global_rank, engine.world_size)
    for flat in flats:
        with _in_memory(engine, flat):
            yield from _stretches(engine, flat)


def restore(engine: Any, fill: Callable[[Iterable[Stretch]], None], *, steps: int) -> None:
    """Hand all that this rank holds to `fill`, and have the engine go on with that. Every rank calls this."""
    zero3 = engine.zero_optimization_stage() == 3
    if zero3:
        engine.optimizer.checkpoint_event_prologue()  # nothing is gathered, or it would be out of date

    def wanted() -> Iterator[Stretch]:
        for flat in _flats(engine):
            with _in_memory(engine, flat, write=True):
                yield from _stretches(engine, flat)
                _set_steps(_adam(engine).state[flat.tensor], steps)
                if zero3:
                    engine.optimizer._reassign_or_swap_out_partitioned_parameters(flat.number)

    with torch.no_grad():
        filled = wanted()
        fill(filled)
        assert next(filled, None) is None, "not all was filled"
        if zero3:
            engine.optimizer.checkpoint_event_epilogue()
        elif engine.zero_optimization_stage() > 0:
            engine.optimizer.update_lp_params()


def _trained(engine: Any) -> list[tuple[str, Any]]:
    return [
        (name, p)
        for name, p in engine.module.named_parameters()
        if p.requires_grad and torch.Size(_shape(p)).numel()
    ]


def _shape(p: Any) -> tuple[int, ...]:
    """Under ZeRO-3 a parameter is empty most of the time."""
    return tuple(getattr(p, "ds_shape", p.shape))


def _adam(engine: Any) -> Any:
    """The optimizer that holds the moments: within ZeRO's, or itself."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _flats(engine: Any) -> list[_Flat]:
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    optimizer = engine.optimizer
    names = {id(p): name for name, p in _trained(engine)}
    match optimizer:
        case DeepSpeedZeroOptimizer_Stage3():
            assert not optimizer.offload_optimizer or optimizer.partial_offload == 1.0, "a second optimizer"
            flats = [
                _Flat(i, flat, [_part_of_three(optimizer, names[id(p)], p) for p in optimizer.fp16_groups[i]])
                for i, flat in enumerate(optimizer.fp32_partitioned_groups_flat)
            ]
        case DeepSpeedZeroOptimizer():
            masters, groups = optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups
            flats = [
                _flat_of_two(i, m, g, names) for i, (m, g) in enumerate(zip(masters, groups, strict=True))
            ]
        case BF16_Optimizer():  # ZeRO-1 in bf16 with gradients in fp32
            masters, groups = optimizer.fp32_groups_flat_partition, optimizer.bf16_groups
            flats = [
                _flat_of_two(i, m, g, names) for i, (m, g) in enumerate(zip(masters, groups, strict=True))
            ]
        case torch.optim.Adam():  # AdamW is one
            held = [p for group in optimizer.param_groups for p in group["params"]]
            flats = [_Flat(i, p, [(names[id(p)], 0, 0, p.numel())]) for i, p in enumerate(held)]
        case _:
            raise AssertionError(type(optimizer))
    return flats


def _part_of_three(optimizer: Any, name: str, p: Any) -> tuple[str, int, int, int]:
    """Under ZeRO-3 all ranks' parts are equally long; the last ones may reach beyond the parameter's end."""
    _, offset, count = optimizer.grad_position[optimizer.get_param_id(p)]
    start = count * optimizer._get_param_partition_rank(p)
    return name, offset, start, max(0, min(count, p.ds_numel - start))


def _flat_of_two(number: int, flat: torch.Tensor, group: Iterable[Any], names: dict[int, str]) -> _Flat:
    """Under ZeRO-1 and -2 a parameter knows where its part lies, if this rank has one."""
    held = [
        (names[id(p)], m.hp_fragment_address, m.lp_fragment_address) for p in group if (m := p._hp_mapping)
    ]
    return _Flat(number, flat, [(name, here.start, there.start, here.numel) for name, here, there in held])


def _share(flats: list[_Flat], rank: int, world: int) -> list[_Flat]:
    """An equal part of what all ranks hold alike."""
    total = sum(count for flat in flats for *_, count in flat.holds)
    low, high = rank * total // world, (rank + 1) * total // world
    shared, at = [], 0
    for flat in flats:
        holds = []
        for name, offset, start, count in flat.holds:
            first, end = max(low - at, 0), min(high - at, count)
            if first < end:
                holds.append((name, offset + first, start + first, end - first))
            at += count
        shared.append(_Flat(flat.number, flat.tensor, holds))
    return shared


def _stretches(engine: Any, flat: _Flat) -> Iterator[Stretch]:
    state = _adam(engine).state[flat.tensor]
    held = dict(zip(KINDS, (flat.tensor, state["exp_avg"], state["exp_avg_sq"]), strict=True))
    for name, offset, start, count in flat.holds:
        for kind, tensor in held.items():
            yield Stretch(name, kind, start, tensor.detach().view(-1)[offset : offset + count])


@contextmanager
def _in_memory(engine: Any, flat: _Flat, *, write: bool = False) -> Iterator[None]:
    """Fetch the tensor and its moments from the disk, where they lie on one; put them back if `write`.

    An optimizer makes its moments when it first steps; one that has not yet stepped is given them, all zero.
    """
    zero = engine.optimizer
    swaps = getattr(zero, "swap_optimizer", False) and zero._swappable_optimizer_subgroup(flat.number)
    if swaps:
        zero._optimizer_states_and_gradient_swap_in(flat.number)
    adam = _adam(engine)
    if "exp_avg" not in adam.state[flat.tensor]:
        adam.state[flat.tensor] |= _young(adam, flat.tensor)
        write = True
    yield
    if swaps and write:
        zero._optimizer_states_and_gradient_swap_out(flat.number)
    elif swaps:
        zero._release_swap_buffers(flat.number)


def _young(adam: Any, tensor: torch.Tensor) -> dict[str, Any]:
    """Adam's state before its first step, as this kind of Adam would make it."""
    step: Any = 0  # DeepSpeed's own count in Python
    if isinstance(adam, torch.optim.Adam):
        on_device = adam.defaults["fused"] or adam.defaults["capturable"]
        step = torch.zeros((), dtype=torch.float32, device=tensor.device if on_device else "cpu")
    return {"step": step, "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.zeros_like(tensor)}


def _set_steps(state: dict[str, Any], steps: int) -> None:
    if torch.is_tensor(state["step"]):
        state["step"].fill_(steps)
    else:
        state["step"] = steps
