"""What an epoch shows: pure functions of the seed, the mixture and the examples.

In:  gathered examples, the numbers of the spec's `mixture`, a seed, an epoch.
Out: requests, an instruction each: which example, in which pass, behind which solved ones.

    [films] = train_requests(gathered, planned(gathered, draws), draws, seed=17, epoch=0)
    films[0]      # Request(task="films", place=812, id=…, split="train", epoch=0, pass_=0, exemplars=(), options=None)

The seed decides which examples are drawn and in what order. How one reads hangs on the pass and on its content alone
(wording.py), so that another seed has nothing tokenized again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ift.data import mixture
from ift.data.examples import Pool
from ift.data.gather import Gathered
from ift.prompts import fewshot, options
from ift.prompts.template import choose
from ift.spec import MixtureSpec
from ift.tasks.task import RAW, Task


@dataclass(frozen=True)
class Draws:
    """How an epoch is drawn and shown: the numbers of the spec's `mixture`."""

    size: int | None = None
    replay: float = 0.0
    few_shot: float = 0.0
    shots: int = 5
    options: float | None = None
    max_repeats: float = 4.0


def draws_of(spec: MixtureSpec) -> Draws:
    """The numbers of a spec's `mixture`."""
    return Draws(
        size=spec.size,
        replay=spec.replay.share if spec.replay else 0.0,
        few_shot=spec.few_shot,
        shots=spec.shots,
        options=spec.options,
        max_repeats=spec.max_repeats,
    )


def planned(gathered: Gathered, draws: Draws) -> dict[str, int]:
    """How many examples of each task an epoch draws. Replay comes on top, unless a size is asked for."""
    selection, sizes = gathered.selection, gathered.sizes
    size = mixture.natural_size(selection.mix, sizes) if draws.size is None else draws.size
    if not selection.replay:
        return mixture.plan(selection.mix, sizes, size)
    total = round(size / (1 - draws.replay)) if draws.size is None else size
    replayed = round(total * draws.replay)
    return {
        **mixture.plan(selection.mix, sizes, total - replayed),
        **mixture.plan(selection.replay, sizes, replayed),
    }


def repeats(gathered: Gathered, counts: Mapping[str, int], draws: Draws, epochs: int) -> list[str]:
    """A warning for every task whose examples are seen more often than `max_repeats`."""
    sizes = gathered.sizes
    times = {name: count * epochs / sizes[name] for name, count in counts.items() if count}
    return [
        f"`{name}`: each of its {sizes[name]:,} examples is seen {n:.1f} times in the run "
        f"(mixture.max_repeats {draws.max_repeats:g})"
        for name, n in times.items()
        if n > draws.max_repeats
    ]


@dataclass(frozen=True)
class Request:
    """One instruction to be made: `split` and `epoch` say where it goes, `pass_` which template words it."""

    task: str
    place: int  # in the task's examples
    id: int
    split: str
    epoch: int
    pass_: int
    exemplars: tuple[int, ...]  # places of the solved examples before it
    options: bool | None  # shown or not; None as the template has it

    @property
    def example(self) -> str:
        """The example's id as it is written."""
        return f"{self.id:016x}"

    @property
    def key(self) -> str:
        """What its words are drawn by: not the seed, so that another seed shows them in another order and no more."""
        return f"{self.pass_}/{self.example}"


_AS_IT_IS = -1


@dataclass(frozen=True)
class Requests:
    """Instructions of one task to be made, in one epoch or for validation; an element of the arrays each."""

    task: str
    split: str
    epoch: int
    places: NDArray[np.int64]
    ids: NDArray[np.uint64]
    passes: NDArray[np.int64]
    options: NDArray[np.int8]  # 1 shown, 0 not, -1 as the template has it
    exemplars: dict[int, tuple[int, ...]] = field(default_factory=dict)  # by element; most have none

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Request:
        if i >= len(self):
            raise IndexError(i)
        options = int(self.options[i])
        return Request(
            self.task,
            int(self.places[i]),
            int(self.ids[i]),
            self.split,
            self.epoch,
            int(self.passes[i]),
            self.exemplars.get(i, ()),
            None if options == _AS_IT_IS else bool(options),
        )

    def __iter__(self) -> Iterator[Request]:
        return (self[i] for i in range(len(self)))

    def some(self, elements: NDArray[np.int64]) -> "Requests":
        """The requests at these places among them."""
        exemplars = {
            new: self.exemplars[old] for new, old in enumerate(elements.tolist()) if old in self.exemplars
        }
        return replace(
            self,
            places=self.places[elements],
            ids=self.ids[elements],
            passes=self.passes[elements],
            options=self.options[elements],
            exemplars=exemplars,
        )


def train_requests(
    gathered: Gathered, counts: Mapping[str, int], draws: Draws, *, seed: int, epoch: int
) -> list[Requests]:
    """What one epoch shows, task by task: which examples, in which pass, with which exemplars.

    `few_shot` and `options` hold for the instructions that can have them, to within one. Whether an imported template
    can show options is only known once it is worded; those that turn out not to, do not.
    """
    requests = []
    for name, count in counts.items():
        pool = gathered.splits[name]["train"]
        drawn = mixture.draws(pool.ids.tolist(), count, task=name, seed=seed, epoch=epoch)
        chosen, passes = np.array(drawn, dtype=np.int64).reshape(-1, 2).T
        if not (draws.few_shot or gathered.tasks[name].varies):
            passes = np.zeros_like(passes)  # every pass reads the same
        if count:
            requests.append(_requests(name, "train", epoch, pool, chosen, passes))
    if draws.few_shot:
        _draw_exemplars(gathered, requests, draws)
    if draws.options is not None:
        _draw_options(gathered, requests, draws.options)
    return requests


def validation_requests(gathered: Gathered, counts: Mapping[str, int]) -> list[Requests]:
    """The validation examples of the tasks that are drawn from, each once."""
    pools = {name: gathered.splits[name]["validation"] for name, count in counts.items() if count}
    return [
        _requests(name, "validation", 0, pool, np.arange(len(pool)), np.zeros(len(pool), dtype=np.int64))
        for name, pool in pools.items()
        if len(pool)
    ]


def _requests(
    name: str, split: str, epoch: int, pool: Pool, chosen: NDArray[np.int64], passes: NDArray[np.int64]
) -> Requests:
    options = np.full(len(chosen), _AS_IT_IS, dtype=np.int8)
    return Requests(name, split, epoch, pool.places[chosen], pool.ids[chosen], passes, options)


def _draw_exemplars(gathered: Gathered, requests: Sequence[Requests], draws: Draws) -> None:
    sizes = gathered.sizes
    able = [
        (some, list(range(len(some))))
        for some in requests
        if gathered.tasks[some.task].kind not in RAW and sizes[some.task] > 1
    ]
    pools = {some.task: gathered.splits[some.task]["train"] for some, _ in able}
    ids = {name: pool.ids for name, pool in pools.items()}
    for some, i in _chosen(able, draws.few_shot, purpose="few_shot"):
        key = some[i].key
        shots = 1 + int(options.draw(f"how_many/{key}") * draws.shots)
        places = fewshot.draw(ids[some.task], some.ids[i], shots=shots, key=key)
        some.exemplars[i] = tuple(pools[some.task].places[places].tolist())


def _draw_options(gathered: Gathered, requests: Sequence[Requests], share: float) -> None:
    able = []
    for some in requests:
        task = gathered.tasks[some.task]
        if task.kind not in RAW:
            some.options[:] = 0
            able.append((some, [i for i, request in enumerate(some) if _can_show_options(task, request)]))
    for some, i in _chosen(able, share, purpose="options"):
        some.options[i] = 1


def _chosen(
    able: Sequence[tuple[Requests, Sequence[int]]], share: float, *, purpose: str
) -> Iterator[tuple[Requests, int]]:
    """`share` of the elements that are `able`, to within one, as their keys decide."""
    keys = [f"{some.task}/{some[i].key}" for some, elements in able for i in elements]
    chosen = mixture.chosen(keys, share, purpose=purpose)
    everyone = ((some, i) for some, elements in able for i in elements)
    return (one for one, key in zip(everyone, keys, strict=True) if key in chosen)


def _can_show_options(task: Task, request: Request) -> bool:
    template = choose(task.wordings, pass_=request.pass_, example_id=request.example)
    return template.form != "inverted" and bool(task.choices or template.answers)
