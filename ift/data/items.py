"""The frozen items of the test splits and the probes: what the model is asked before and after tuning.

In:  gathered examples and probes.
Out: items as plain values that `evaluate` understands.

    items, bad = items_of(gathered, probes, limit=200)
    # [{"suite": "task", "name": "trec", "kind": "multiple_choice", "prompt": "…", …}, …]
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ift.data.gather import Gathered
from ift.errors import IftError
from ift.prompts import sandbox
from ift.prompts.chat import exchanges
from ift.prompts.template import Instruction, choose
from ift.tasks.probes import Probe
from ift.tasks.task import Example, Task


def items_of(
    gathered: Gathered,
    probes: Sequence[Probe],
    *,
    limit: int | None,
    options: float | None = None,
    split: str = "test",
    allow_code: bool = False,
) -> tuple[list[dict[str, Any]], list[tuple[str, int, str]]]:
    """The frozen items of the test splits (or another `split`) and the probes, as `evaluate` understands them.

    With them the examples that could not be worded: task, place, reason. Answer options are shown as the
    templates say, unless training shows (`options` 1) or hides (0) them always. With `allow_code` programs are graded
    by their task's tests.
    Tasks that are only replayed are not tested: they are there for what they keep, which the probes measure.
    """
    selection = gathered.selection
    shown = shown_options(options)
    items: list[dict[str, Any]] = []
    bad: list[tuple[str, int, str]] = []
    for name, task in gathered.tasks.items():
        if name in selection.replayed:
            continue
        suite = "held_out" if name in selection.held_out else "task"
        tested = gathered.splits[name][split][:limit]
        for place, example in zip(tested.places.tolist(), tested, strict=True):
            try:
                items += [
                    {**item, "suite": suite} for item in items_of_test(task, example, shown, allow_code)
                ]
            except IftError as error:
                bad.append((name, place, error.what))
    return items + probe_items(probes), bad


def probe_items(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """The items of the probes alone."""
    return [
        {
            "suite": "probe",
            "name": probe.name,
            "id": item.id,
            "kind": probe.kind,
            "metric": None,
            "system": "",
            "prompt": item.prompt,
            "choices": list(item.choices),
            "answer": item.answer,
            "reference": item.reference,
            "check": item.check,
            "max_new_tokens": probe.max_new_tokens,
        }
        for probe in probes
        for item in probe.items
    ]


def items_of_test(task: Task, example: Example, shown: bool | None, allow_code: bool) -> list[dict[str, Any]]:
    """The item of one test example; none for raw text, whose loss on the validation split says it all."""
    item = _blank(task, example)
    if task.kind == "text":
        return []
    if task.kind == "chat":  # the first answer; later ones hang on what was answered before
        try:
            system, pairs = exchanges(example.fields["messages"])
        except ValueError:  # no conversation: training sets such a row aside, and says why
            return []
        question, answer = pairs[0]
        if answer is None:
            return []
        return [{**item, "system": system or task.system, "prompt": question, "reference": answer}]
    template = choose(task.evaluation_wordings, pass_=0, example_id=example.id)
    key = f"0/{example.id}"
    worded = template.word(example.fields, key=key, show_options=shown, with_choices=True)
    asked = item_of(task, example, worded)
    if allow_code and task.tests:
        asked |= {"metric": "code", "reference": sandbox.render(task.tests, example.fields)}
    return [asked]


def item_of(task: Task, example: Example, worded: Instruction) -> dict[str, Any]:
    """The item that asks `worded`, an instruction with its choices; it has no `suite` yet."""
    item = _blank(task, example) | {"prompt": worded.prompt, "reference": worded.completion}
    if task.choices:
        item |= {"kind": "multiple_choice", "choices": list(worded.choices), "answer": worded.right}
        if task.choices.names:  # a prompt may call them A and B
            item["labels"] = [task.choices.names[place] for place in worded.order]
    return item


def _blank(task: Task, example: Example) -> dict[str, Any]:
    return {
        "name": task.name,
        "id": example.id,
        "kind": "generation",
        "task_kind": task.kind,
        "metric": task.metric or "rouge_l",
        "system": task.system,
        "choices": [],
        "answer": None,
        "check": None,
        "max_new_tokens": task.max_new_tokens,
    }


def shown_options(options: float | None) -> bool | None:
    """Whether items show their options: as training always (1) or never (0) does, else as templates say."""
    return bool(options) if options in (0, 1) else None


def first_of_each(items: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` items of each task and probe."""
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[item["name"]] += 1
        if seen[item["name"]] <= count:
            kept.append(item)
    return kept
