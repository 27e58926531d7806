"""What an epoch shows, and in which words: pure functions of the seed, the mixture and the examples.

In:  gathered examples, the numbers of the spec's `mixture`, a seed, an epoch.
Out: requests, an instruction each: which example, in which pass, behind which solved ones; and each as tokens.

    [films] = train_requests(gathered, planned(gathered, draws), draws, seed=17, epoch=0)
    worded(tokenizer, words, films, examples, Limits(1024))    # [[Made(document=…, template="ask", shots=2, …)], …]

The seed decides which examples are drawn and in what order. The words of an example hang on the pass and on its
content alone, so that another seed has nothing tokenized again.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift.data import mixture
from ift.data.examples import Lookup, Pool
from ift.data.gather import Gathered
from ift.data.tokenize import (
    Document,
    TooLong,
    answers,
    conversation,
    documents,
    halves,
    shortened,
    text,
    too_long,
)
from ift.errors import IftError
from ift.prompts import fewshot, options
from ift.prompts.chat import Tokenizer
from ift.prompts.template import Instruction, Template, choose
from ift.spec import MixtureSpec, Spec
from ift.tasks.task import RAW, Example, Task


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


@dataclass(frozen=True)
class Limits:
    """How long an instruction may be, in tokens, and what becomes of a longer one.

    `max_length` holds for what is read and what is written together, whichever part of a model sees them.
    """

    max_length: int
    few_shot_tokens: int | None = None
    cut_prompts: bool = False  # from the left, to fit; else a longer one is set aside
    encoder_decoder: bool = False  # what is read goes to an encoder, and is written down otherwise


def limits_of(spec: Spec, *, encoder_decoder: bool) -> Limits:
    """The lengths that a spec allows, for such a model."""
    return Limits(
        spec.data.max_length,
        spec.mixture.few_shot_tokens,
        cut_prompts=spec.data.too_long == "cut_prompt",
        encoder_decoder=encoder_decoder,
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


@dataclass(frozen=True)
class Words:
    """What a worker needs of a task to word its examples."""

    kind: str
    templates: tuple[Template, ...]
    evaluation: tuple[Template, ...]  # those that may ask for the answer in validation
    system: str

    @classmethod
    def of(cls, task: Task) -> "Words":
        raw = task.kind in RAW
        return cls(task.kind, task.wordings, () if raw else task.evaluation_wordings, task.system)


@dataclass(frozen=True)
class Made:
    """One request, worded and tokenized; or the reason why not."""

    document: Document | None
    template: str = ""
    prompt: str = ""
    completion: str = ""
    shots: int = 0
    options_shown: bool = False
    reason: str | None = None
    too_long: bool = False
    cut: bool = False  # its prompt lost its beginning


def worded(
    tokenizer: Tokenizer, words: Words, requests: Iterable[Request], examples: Lookup, limits: Limits
) -> list[list[Made]]:
    """Each request in the words of the template that its pass assigns, and as tokens.

    One instruction a request, but for raw text: that is as many pieces as it needs. Of the exemplars as many stay as
    fit `max_length`, and `few_shot_tokens` where given; with none left the instruction is a zero-shot one.
    """
    made: list[list[Made]] = []
    plain: list[tuple[int, Instruction]] = []  # tokenized together: one by one takes twice as long
    for request in requests:
        fields = examples[request.place].fields
        try:
            if words.kind in RAW:
                made.append(_raw(tokenizer, words, fields, limits))
                continue
            templates = words.evaluation if request.split == "validation" else words.templates
            template = choose(templates, pass_=request.pass_, example_id=request.example)
            query = template.word(fields, key=request.key, show_options=request.options)
            if request.exemplars:
                offered = [examples[place] for place in request.exemplars]
                made.append([_few_shot(tokenizer, template, query, request, offered, limits)])
            else:
                plain.append((len(made), query))
                made.append([])
        except (ValueError, IftError) as error:
            made.append([_refused(error)])
    texts = [(q.prompt, q.completion, q.system) for _, q in plain]
    encoded = documents(tokenizer, texts, encoder=limits.encoder_decoder)
    for (i, query), found in zip(plain, encoded, strict=True):
        made[i] = [_fitting(tokenizer, query, found, limits)]
    return made


def _raw(tokenizer: Tokenizer, words: Words, fields: Mapping[str, Any], limits: Limits) -> list[Made]:
    if words.kind == "text":
        cut = halves if limits.encoder_decoder else text
        return [Made(piece) for piece in cut(tokenizer, str(fields["text"]), max_length=limits.max_length)]
    turns = fields["messages"]
    if words.system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": words.system}, *turns]
    if limits.encoder_decoder:
        return [Made(answer) for answer in answers(tokenizer, turns, max_length=limits.max_length)]
    return [Made(conversation(tokenizer, turns, max_length=limits.max_length))]


def _refused(error: Exception, template: str = "") -> Made:
    reason = error.what if isinstance(error, IftError) else str(error)
    return Made(None, template, reason=reason, too_long=isinstance(error, TooLong))


def _fitting(tokenizer: Tokenizer, query: Instruction, found: Document | ValueError, limits: Limits) -> Made:
    """A zero-shot instruction within the limits."""
    if isinstance(found, ValueError):
        return _refused(found, query.template)
    cut = False
    if len(found.ids) > limits.max_length:
        try:
            if not limits.cut_prompts:
                raise TooLong(too_long(len(found.ids), limits.max_length))
            texts = (query.prompt, query.completion, query.system)
            found = shortened(tokenizer, *texts, limits.max_length, encoder=limits.encoder_decoder)
            cut = True
        except ValueError as error:
            return _refused(error, query.template)
    return Made(found, query.template, query.prompt, query.completion, 0, query.options_shown, cut=cut)


def _few_shot(
    tokenizer: Tokenizer,
    template: Template,
    query: Instruction,
    request: Request,
    offered: Sequence[Example],
    limits: Limits,
) -> Made:
    """The query behind as many of the exemplars as fit."""
    encoder = limits.encoder_decoder
    [found] = documents(tokenizer, [(query.prompt, query.completion, query.system)], encoder=encoder)
    alone = _fitting(tokenizer, query, found, limits)
    if alone.document is None or alone.cut:
        return alone
    exemplars = _exemplars(template, query, offered, request.key)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    room = limits.max_length - len(alone.document.ids) + count(query.prompt)
    budget = min(room, limits.few_shot_tokens) if limits.few_shot_tokens else room
    while exemplars:
        longer, shots = fewshot.prepend(query, exemplars, key=request.key, budget=budget, count=count)
        [found] = documents(tokenizer, [(longer.prompt, longer.completion, longer.system)], encoder=encoder)
        if isinstance(found, Document) and len(found.ids) <= limits.max_length:
            return replace(alone, document=found, prompt=longer.prompt, shots=shots)
        exemplars = exemplars[: max(0, shots - 1)]  # the parts counted apart were shorter than the whole
    return alone


def _exemplars(
    template: Template, query: Instruction, offered: Sequence[Example], key: str
) -> list[Instruction]:
    """Those offered, in the query's template and style; one that cannot be worded so is left out."""
    worded = []
    for example in offered:
        try:
            one = template.word(
                example.fields, key=f"{key}/{example.id}", style_key=key, show_options=query.options_shown
            )
        except IftError:
            continue  # it is set aside where it is a query itself
        if one.options_shown == query.options_shown:
            worded.append(one)
    return worded
