"""Requests in words and as tokens: what a worker does for each instruction.

In:  a tokenizer, a task's templates, requests, the examples they are of.
Out: the documents of each request, or the reason why there is none.

    worded(tokenizer, Words.of(task), films, examples, Limits(1024))
    # [[Made(document=…, template="ask", shots=2, …)], …]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ift.data.draws import Request
from ift.data.examples import Lookup
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
from ift.prompts import fewshot
from ift.prompts.chat import Tokenizer
from ift.prompts.template import Instruction, Template, choose
from ift.spec import Spec
from ift.tasks.task import RAW, Example, Task


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
    cut: bool = False  # its prompt lost its beginning, or the conversation its end


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
        found = answers(tokenizer, turns, max_length=limits.max_length)
    else:
        found = [conversation(tokenizer, turns, max_length=limits.max_length)]
    return [Made(document, cut=document.cut) for document in found]


def _refused(error: Exception, template: str = "") -> Made:
    reason = error.what if isinstance(error, IftError) else str(error)
    return Made(None, template, reason=reason, too_long=isinstance(error, TooLong))


def _fitting(tokenizer: Tokenizer, query: Instruction, found: Document | ValueError, limits: Limits) -> Made:
    """A zero-shot instruction within the limits."""
    if isinstance(found, ValueError):
        return _refused(found, query.template)
    if len(found.ids) > limits.max_length:
        try:
            if not limits.cut_prompts:
                raise TooLong(too_long(len(found.ids), limits.max_length))
            texts = (query.prompt, query.completion, query.system)
            found = shortened(tokenizer, *texts, limits.max_length, encoder=limits.encoder_decoder)
        except ValueError as error:
            return _refused(error, query.template)
    return Made(found, query.template, query.prompt, query.completion, 0, query.options_shown, cut=found.cut)


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
