"""Templates: a Jinja pair that words one example as an instruction.

In:  two template texts, the fields of an example, and a key that decides every draw.
Out: an `Instruction`: prompt and completion as text, and the answers that could have been given.

    ask = Template("ask", "Is this good? {{ text }}{{ options_ }}", "{{ label }}", answer="label", names=("no", "yes"))
    ask.word({"text": "Fun.", "label": "yes"}, key="17/0/ab")
    # Instruction(prompt="Is this good? Fun.\\n\\nOptions: no or yes", completion="yes", …)

Templates may come from strangers: they run in `sandbox.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ift.errors import IftError
from ift.prompts import options, sandbox
from ift.prompts.options import Style

Form = Literal["direct", "inverted", "rationale"]

PLACE = "options_"  # where a prompt shows the options; named as in FLAN, so that no column is called the same
INVERTED_WEIGHT = 0.3  # beside 1 of the others (Longpre et al. 2023, arXiv 2301.13688)

# Options that speak of their place keep it.
_ORDERED = re.compile(
    r"\b(?:all|none|both|neither|any|two) of (?:the|these)\b|\b(?:both )?[A-E] and [A-E]\b", re.I
)


@dataclass(frozen=True)
class Instruction:
    """An example under a template.

    `choices` are the completions among which a classification decides, `right` the place of the right one; both
    are empty where the answer is open or was not asked for. `order` has for each choice its place among the task's
    options, as a prompt may show them in another order.
    """

    prompt: str
    completion: str
    template: str
    system: str = ""
    options_shown: bool = False
    choices: tuple[str, ...] = ()
    right: int | None = None
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Template:
    """`prompt` and `completion` are Jinja texts; `id` names the pair within its task.

    `answer` is the field that holds the right answer. Its options are `names`, the same for every example, or the
    list in the field `options_from`. `answers` are this template's own words for `names`; as one text, a Jinja text
    that renders to options between `|||`.
    """

    id: str
    prompt: str
    completion: str
    form: Form = "direct"
    weight: float = 1.0
    system: str = ""
    answers: tuple[str, ...] | str = ()
    style: Style | None = None
    answer: str | None = None
    names: tuple[str, ...] = ()
    options_from: str | None = None
    shuffle: bool = True

    @property
    def places_options(self) -> bool:
        """Whether the prompt says where the options are shown."""
        return PLACE in sandbox.names_in(self.prompt)

    @property
    def answers_alone(self) -> bool:
        """Whether the completion is the answer and nothing else, so that a letter can stand for it."""
        name = self.answer or r"answer_choices\s*\[[^{}]*\]"
        return re.fullmatch(r"\{\{-?\s*" + name + r"\s*-?\}\}", self.completion.strip()) is not None

    @property
    def fields(self) -> frozenset[str]:
        """The fields that the texts name."""
        texts = [self.prompt, self.completion, *([self.answers] if isinstance(self.answers, str) else [])]
        return frozenset().union(*map(sandbox.names_in, texts)) - {PLACE, "answer_choices"}

    def word(
        self,
        fields: Mapping[str, Any],
        *,
        key: str,
        style_key: str | None = None,
        show_options: bool | None = None,
        with_choices: bool = False,
    ) -> Instruction:
        """The instruction for one example.

        `key` decides the order of the options and, unless `style_key` does, how they are shown. `show_options`
        None shows them where the prompt has a place for them; True and False overrule that. `with_choices`
        also renders every other answer. Raises `IftError` where a field is missing, the sandbox refuses, or a
        text comes out empty.
        """
        style_key = style_key or key
        values = dict(fields)
        texts, right = self._options(values, key)
        show = self.places_options if show_options is None else show_options
        show = show and len(texts) > 1 and self.form != "inverted"
        block, targets, order = "", tuple(texts), list(range(len(texts)))
        if show:
            if self.shuffle and not any(_ORDERED.search(text) for text in texts):
                order = options.order(len(texts), key)
            block, shown = options.show(
                [texts[i] for i in order], style=self._style(style_key), key=style_key
            )
            targets = tuple(shown[order.index(i)] for i in range(len(texts)))
        if self.answer and right is not None:
            values[self.answer] = texts[right]
        prompt = self._render("prompt", {**values, PLACE: block}, key)
        if show and not self.places_options:
            prompt += block
        completions: tuple[str, ...] = ()
        if self.form == "inverted":
            completion, right = self._render("completion", values, key), None
        elif self.answer and right is not None:
            completion = self._completion(values, targets[right], key)
            if with_choices:
                completions = tuple(self._completion(values, targets[i], key) for i in order)
                right = order.index(right)
        else:
            completion = self._render("completion", values, key)
            if completion in texts:  # an imported template writes its answer itself
                right = texts.index(completion)
                completion = targets[right]
                if with_choices:
                    completions = tuple(targets[i] for i in order)
                    right = order.index(right)
            elif show:  # its letter cannot be known: what was shown would be misleading
                return self.word(
                    fields, key=key, style_key=style_key, show_options=False, with_choices=with_choices
                )
        asked = (right, tuple(order)) if completions else (None, ())
        return Instruction(prompt, completion, self.id, self.system, show, completions, *asked)

    def _options(self, values: dict[str, Any], key: str) -> tuple[list[str], int | None]:
        """The options in this template's words, and the place of the right one where a field names it."""
        if isinstance(self.answers, str):
            rendered = [part.strip() for part in self._render("answers", values, key).split("|||")]
            values["answer_choices"] = rendered
            return (rendered if len(rendered) > 1 else []), None
        if not self.answer:
            return [], None
        known = list(self.names) or [str(option) for option in values[self.options_from or ""]]
        return list(self.answers) or known, known.index(str(values[self.answer]))

    def _style(self, key: str) -> Style | None:
        """The style asked for; letters only where the answer stands alone, as it is: "It is written in C." would be
        wrong, and so would `{{ "good" if label == "yes" else "bad" }}` of a letter."""
        return self.style or (
            None if self.answers_alone else options.pick(("list", "inline"), f"unlettered/{key}")
        )

    def _completion(self, values: dict[str, Any], target: str, key: str) -> str:
        return self._render("completion", {**values, str(self.answer): target}, key)

    def _render(self, part: str, values: Mapping[str, Any], key: str) -> str:
        try:
            text = sandbox.render(getattr(self, part), values, draw=key)
        except IftError as error:
            raise IftError(
                f"template `{self.id}`, {part}: {error.what}", wanted=error.wanted, hint=error.hint
            ) from None
        if not text and part != "answers":
            raise IftError(f"template `{self.id}`: the {part} comes out empty", wanted="some text")
        return text


def choose(templates: Sequence[Template], *, pass_: int, example_id: str) -> Template:
    """The template that words this example in this pass: an assignment, not a multiplication.

    A pure function of its arguments, so that another seed, order, batch size or world size changes nothing.
    Templates are drawn by their weights.
    """
    place = options.draw(f"template/{pass_}/{example_id}") * sum(t.weight for t in templates)
    for template in templates:
        place -= template.weight
        if place < 0:
            return template
    return templates[-1]
