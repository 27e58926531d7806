"""Every task of the library, on three rows of its real schema."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from ift.data.items import items_of_test
from ift.prompts.options import STYLES
from ift.tasks import task as tasks
from ift.tasks.clusters import CLUSTERS
from ift.tasks.metrics import grade
from ift.tasks.task import RAW, Example, Task

ROWS = Path(__file__).with_name("rows")
NAMES = tasks.library()
TEMPLATES_EACH = 10


def examples_of(task: Task) -> list[Example]:
    lines = (ROWS / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 3
    return [task.example(row) for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_reads_rows_of_its_schema(name: str) -> None:
    task = tasks.load(name)
    examples = examples_of(task)
    assert len({example.id for example in examples}) == 3
    assert task.cluster in CLUSTERS
    assert task.description.endswith((".", "?"))
    assert "license" in task.model_fields_set  # said, be it `unstated`
    if task.kind == "classification":
        assert len({example.label for example in examples}) >= 2
    if task.source.hub:
        assert task.source.splits is None or set(task.source.splits) <= {"train", "validation", "test"}


def test_of_a_hub_data_set_of_a_million_rows_only_the_first_are_fetched() -> None:
    """How many rows there are is said at the top of a task's file."""
    large = []
    for task in map(tasks.load, NAMES):
        assert task.path is not None
        top = task.path.read_text(encoding="utf-8").partition("\nname:")[0]
        if task.source.hub and re.search(r"\bmillion\b|\d,\d{3},\d{3}", top):
            large.append(task.name)
            assert task.source.hub.streaming, task.name
    assert len(large) >= 8


def test_a_conversations_answer_has_room_for_some_paragraphs() -> None:
    for name in ("no_robots", "soda", "ultrachat_200k"):
        assert tasks.load(name).max_new_tokens == 512


@pytest.mark.parametrize("name", [name for name in NAMES if tasks.load(name).tests])
def test_the_solutions_of_programming_tasks_pass_their_tests(name: str) -> None:
    task = tasks.load(name)
    for example in examples_of(task):
        (plain,), (item,) = (items_of_test(task, example, None, allow_code) for allow_code in (False, True))
        assert plain["metric"] == task.metric
        assert item == {**plain, "metric": "code", "reference": item["reference"]}
        assert grade("code", plain["reference"], item["reference"], allow_code=True) == 1
        assert grade("code", "pass", item["reference"], allow_code=True) == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_template_words_every_row(name: str) -> None:
    task = tasks.load(name)
    examples = examples_of(task)
    if task.kind in RAW:
        assert not task.templates
        return
    assert len(task.templates) >= TEMPLATES_EACH
    for template in task.wordings:
        seen = set()
        for example in examples:
            shown = [None, False, True] if task.choices else [None]
            for show in shown:
                worded = template.word(
                    example.fields, key=f"0/{example.id}", show_options=show, with_choices=True
                )
                for text in (worded.prompt, worded.completion, *worded.choices):
                    assert text.strip(), template.id
                    assert "\n\n\n" not in text or task.cluster == "code", f"{template.id} leaves a hole"
                    assert "None" not in text.split() or "None" in str(example.fields), template.id
                    assert "{{" not in text, template.id
                    assert "[{" not in text or task.name == "dart" or "json" in template.id, (
                        f"{template.id}: raw data"
                    )
                if template.form == "direct" and task.choices and not show:
                    assert worded.completion == worded.choices[worded.right or 0]
                    assert len(set(worded.choices)) == len(worded.choices), template.id
            seen.add(template.word(example.fields, key="0").prompt)
        assert len(seen) > 1, f"{template.id}: the prompt does not depend on the row"
    prompts = {tuple(t.word(e.fields, key="0").prompt for e in examples) for t in task.wordings}
    assert len(prompts) == len(task.templates), "two templates say the same"


@pytest.mark.parametrize("name", NAMES)
def test_the_metric_is_1_on_the_reference_and_less_on_a_wrong_answer(name: str) -> None:
    task = tasks.load(name)
    examples = examples_of(task)
    if task.kind in RAW:
        assert task.metric is None
        return
    assert 0 <= task.baseline < 1
    wrong_answers = 0
    for template in task.evaluation_wordings:
        for example in examples:
            worded = template.word(example.fields, key=example.id, with_choices=True)
            if task.choices:
                assert worded.right is not None
                assert worded.choices[worded.right] == worded.completion
                wrong = [choice for i, choice in enumerate(worded.choices) if i != worded.right]
                assert worded.completion not in wrong
                continue
            assert task.metric
            assert grade(task.metric, worded.completion, worded.completion) == 1.0, template.id
            others = {template.word(e.fields, key=e.id).completion for e in examples} - {worded.completion}
            wrong_answers += len(others)
            assert all(grade(task.metric, other, worded.completion) < 1.0 for other in others), template.id
    assert task.choices or wrong_answers >= 2 * len(task.evaluation_wordings), (
        "the rows have the same answers"
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", [name for name in NAMES if tasks.load(name).choices])
def test_options_can_be_shown_in_every_style(name: str, style: str) -> None:
    from dataclasses import replace

    task = tasks.load(name)
    for template in task.wordings:
        for example in examples_of(task):
            worded = replace(template, style=style).word(  # type: ignore[arg-type]
                example.fields, key="1", show_options=True, with_choices=True
            )
            if template.form == "direct" and re.fullmatch(r"\{\{ \w+ \}\}", template.completion):
                assert worded.completion in worded.prompt


def test_the_library_is_as_large_as_it_says() -> None:
    loaded = [tasks.load(name) for name in NAMES]
    clusters = Counter(task.cluster for task in loaded)
    assert len(loaded) >= 60
    assert sum(len(task.templates) for task in loaded) >= 600
    assert set(clusters) == set(CLUSTERS)
    assert {task.kind for task in loaded} == {
        "classification",
        "multiple_choice",
        "generation",
        "labelling",
        "chat",
        "text",
    }
    assert sum(template.form == "inverted" for task in loaded for template in task.templates) >= 60


def test_no_wording_serves_two_templates() -> None:
    texts = Counter(
        (task.name, template.prompt, template.completion)
        for task in map(tasks.load, NAMES)
        for template in task.templates
    )
    assert max(texts.values()) == 1
