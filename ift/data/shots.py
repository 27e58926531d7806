"""The test items again, behind solved examples: what in-context learning is asked.

In:  gathered examples, how many solved examples, how many draws of them, how long a prompt may be.
Out: items as those of items.py, with `shots` (those that fit), `draw`, and `context`, what they begin with.

    shot_items(gathered, shots=3, draws=2, limit=200, context=2048, count=count)
    # [{"suite": "task", "name": "trec", "prompt": "What …?\\nAnswer: person\\n\\n…", "shots": 3, "draw": 1, …}, …]

A prompt in use has the same examples for every question, so they are the same here for all items of a task: its first
ones of a shuffled list of training examples, with its labels in turn, so that one shot is the beginning of three.
Which examples they are moves the score (Zhao et al. 2021, Calibrate before use, arXiv 2102.09690), hence several
draws. They are worded by the template of the question, by the function that words few-shot training examples.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ift.data.examples import Pool
from ift.data.gather import Gathered
from ift.data.items import item_of, shown_options
from ift.errors import IftError
from ift.prompts import fewshot
from ift.prompts.template import Instruction, Template, choose
from ift.tasks.task import RAW, Example, Task

_LOOKED_AT = 256  # training examples among which the labels are looked for
_FRAME = 128  # tokens that a chat template may put around a prompt


def shot_items(
    gathered: Gathered,
    *,
    shots: int,
    draws: int,
    limit: int | None,
    context: int | None,
    count: Callable[[str], int],
    options: float | None = None,
) -> list[dict[str, Any]]:
    """Every test item of the tasks that were trained on behind `shots` solved examples, once a draw.

    `count` says how many tokens a text has, `context` how many the model can see: as many solved examples stay as
    leave room for the answer. A test example that cannot be worded was set aside by items.py, and is left out.
    """
    selection = gathered.selection
    items = []
    for name, task in gathered.tasks.items():
        if name in selection.replayed or name in selection.held_out or task.kind in RAW:
            continue
        splits = gathered.splits[name]
        for draw in range(draws):
            solved = solved_examples(task, splits["train"], shots, draw=draw)
            worder = _Worder(task, solved, draw, context, count, shown_options(options))
            for example in splits["test"][:limit]:
                try:
                    items.append(worder.item(example))
                except IftError:
                    continue
    return items


def solved_examples(task: Task, pool: Pool, shots: int, *, draw: int) -> list[Example]:
    """The first `shots` of one draw's examples: the label seen least so far comes next."""
    at_random = random.Random(f"prompting/{task.name}/{draw}")
    places = at_random.sample(range(len(pool)), min(_LOOKED_AT, len(pool)))
    if not task.choices or not task.choices.names:
        return [pool[place] for place in places[:shots]]
    left = [pool[place] for place in places]
    seen: Counter[str | None] = Counter()
    taken: list[Example] = []
    while left and len(taken) < shots:
        fewest = min(seen[example.label] for example in left)
        chosen = next(example for example in left if seen[example.label] == fewest)
        left.remove(chosen)
        seen[chosen.label] += 1
        taken.append(chosen)
    return taken


class _Worder:
    """Puts one draw's solved examples before questions."""

    def __init__(
        self,
        task: Task,
        solved: Sequence[Example],
        draw: int,
        context: int | None,
        count: Callable[[str], int],
        shown: bool | None,
    ) -> None:
        self.task, self.solved, self.draw = task, solved, draw
        self.context, self.count, self.shown = context, count, shown
        self._worded: dict[tuple[str, bool], list[Instruction]] = {}

    def item(self, example: Example) -> dict[str, Any]:
        template = choose(self.task.evaluation_wordings, pass_=0, example_id=example.id)
        # the style of the options, and what stands between examples, are those of all questions in this template
        context = f"{self.task.name}/{template.id}/{self.draw}"
        query = template.word(
            example.fields,
            key=f"0/{example.id}",
            style_key=context,
            show_options=self.shown,
            with_choices=True,
        )
        answer = max(
            [self.task.max_new_tokens or 0, self.count(query.completion), *map(self.count, query.choices)]
        )
        solved = self._solved(template, query.options_shown, context)
        room = (self.context or 2**31) - _FRAME - answer - self.count(query.system)
        asked, kept = fewshot.prepend(query, solved, key=context, budget=room, count=self.count)
        return {
            **item_of(self.task, example, asked),
            "suite": "task",
            "shots": kept,
            "asked_shots": len(self.solved),
            "draw": self.draw,
            "context": context,
        }

    def _solved(self, template: Template, options_shown: bool, context: str) -> list[Instruction]:
        key = (template.id, options_shown)
        if key not in self._worded:
            self._worded[key] = []
            for example in self.solved:
                try:
                    worded = template.word(
                        example.fields,
                        key=f"{context}/{example.id}",
                        style_key=context,
                        show_options=options_shown,
                    )
                except IftError:  # training sets it aside as well; the question can do without it
                    continue
                self._worded[key].append(worded)
        return self._worded[key]
