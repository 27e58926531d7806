"""Tasks: the library is whole, rows become examples with stable ids, mistakes have a place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task
from hypothesis import given
from hypothesis import strategies as st

from ift.errors import IftError
from ift.tasks import fields
from ift.tasks import task as tasks
from ift.tasks.task import Choices, Skip, Source, Task, TemplateSpec

HEAD = "name: x\nkind: generation\nlicense: Apache-2.0\nsource: {files: x.jsonl}\nmetric: exact_match\n"
TEMPLATES = "templates:\n  - {id: a, prompt: '{{ text }}', completion: '{{ label }}'}\n"


def make(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "films",
        "kind": "classification",
        "license": "Apache-2.0",
        "source": Source(files="rows.jsonl"),
        "choices": Choices(field="label", names=("negative", "positive")),
        "metric": "accuracy",
        "templates": (TemplateSpec(id="a", prompt="{{ text }}", completion="{{ label }}"),),
    }
    return Task(**{**values, **changes})


def refusal(folder: Path, text: str) -> str:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(IftError) as caught:
        tasks.load(file=str(path))
    return str(caught.value).replace(str(folder), "DIR")


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(IftError) as caught:
        tasks.load("rotten_tomatos")
    assert str(caught.value) == (
        "no task `rotten_tomatos` in the library\n"
        f"  wanted: one of the {len(tasks.library())} that `ift tasks list` shows, "
        "or the path of a task file, in a spec as {file: my_task.yaml}\n"
        "  next:   did you mean `rotten_tomatoes`?"
    )


def test_own_folders_are_searched_and_shadow_only_if_they_say_so(tmp_path: Path) -> None:
    path = write_task(tmp_path, name="trec")
    with pytest.raises(IftError, match="the task `trec` has the name of a library task") as caught:
        tasks.load("trec", folders=[tmp_path])
    assert "`shadows: true`" in str(caught.value)
    path.write_text(path.read_text(encoding="utf-8") + "shadows: true\n", encoding="utf-8")
    assert tasks.load("trec", folders=[tmp_path]).path == path
    assert tasks.load("trec").path.parent == tasks.LIBRARY
    own = write_task(tmp_path, name="films_of_mine")
    assert tasks.load("films_of_mine", folders=[str(tmp_path)]).path == own
    with pytest.raises(IftError, match=r"no folder .*nowhere"):
        tasks.load("trec", folders=[tmp_path / "nowhere"])


def test_data_files_are_beside_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    task = tasks.load(file=str(write_task(folder).relative_to(tmp_path)))
    monkeypatch.chdir("/")
    assert task.path_of("rows.jsonl") == folder / "rows.jsonl"
    assert task.path_of("/data/rows.jsonl") == Path("/data/rows.jsonl")


CHOOSES = (
    "name: x\nkind: classification\nlicense: MIT\nsource: {files: x.jsonl}\nmetric: accuracy\n"
    "choices: {field: label, names: [a, b]}\n"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "template: []\n" + TEMPLATES,
            "DIR/x.yaml:6: unknown key `template`\n  wanted: one of name, kind, description, cluster, license, "
            "language, shadows, source, hook, group, fields, choices, metric, tests, random_baseline, system, "
            "max_new_tokens, templates\n  next:   did you mean `templates`?",
        ),
        (
            HEAD + "templates:\n  - {id: a, prompt: '{{ text }', completion: b}\n",
            "DIR/x.yaml:7: `templates.0.prompt`: line 1: unexpected '}'\n  wanted: a Jinja text",
        ),
        (
            HEAD + "templates:\n  - {id: a, prompt: {{ text }}, completion: b}\n",
            "DIR/x.yaml:7: not valid YAML: a key is a mapping or a list; text with braces needs quotes\n"
            "  wanted: a YAML mapping",
        ),
        (
            HEAD + TEMPLATES + "  - {id: a, prompt: q, completion: r}\n",
            "DIR/x.yaml:6: `templates`: the id `a` stands here twice",
        ),
        (
            HEAD + TEMPLATES + "choices: {field: label, names: [a, b]}\n",
            "DIR/x.yaml: a generation has no `choices`",
        ),
        (
            (HEAD + TEMPLATES).replace("exact_match", "accuracy"),
            "DIR/x.yaml: accuracy is the metric of classification and multiple_choice",
        ),
        (
            (HEAD + TEMPLATES).replace("exact_match", "rougel"),
            "DIR/x.yaml:5: `metric`: no metric `rougel`; did you mean `rouge_l`?\n  wanted: one of accuracy",
        ),
        (
            (HEAD + TEMPLATES).replace("files: x.jsonl", ""),
            "DIR/x.yaml:4: `source`: rows come from `hub`, `package`, `mlflow` or `files`, one of them\n",
        ),
        (
            (HEAD + TEMPLATES).replace("files: x.jsonl", "files: {trian: x.jsonl}"),
            "DIR/x.yaml:4: `source.files`: there is no split `trian`; did you mean `train`?",
        ),
        (
            (HEAD + TEMPLATES).replace("files: x.jsonl", "files: x.jsonl, splits: {train: a}"),
            "DIR/x.yaml:4: `source`: `splits` goes with `hub`",
        ),
        (HEAD, "DIR/x.yaml: a generation needs `templates`: a list of {id, prompt, completion}"),
        (
            HEAD + "templates:\n  - {id: a, prompt: '{{ text }}', completion: ' '}\n",
            "DIR/x.yaml:7: `templates.0.completion`: a template needs some text here",
        ),
        (
            HEAD + "templates:\n  - {id: a, prompt: '{{ text }}'}\n",
            "DIR/x.yaml:7: `templates.0.completion` is missing\n  wanted: a Jinja text",
        ),
        (
            HEAD + "fields: {text: body}\n" + TEMPLATES,
            "DIR/x.yaml:8: template `a`: it names a field `label`; the task has text",
        ),
        (
            HEAD + "fields: {text: body, labels: l}\n" + TEMPLATES,
            "DIR/x.yaml:8: template `a`: it names a field `label`; the task has text, labels; did you mean `labels`?",
        ),
        (
            HEAD + "fields: {text: {column: a, join: [b]}}\n" + TEMPLATES,
            "DIR/x.yaml:6: `fields.text`: a field comes from one of `column`, `join`, `list`, `bio`, `turns`",
        ),
        (
            HEAD + "fields: {text: {colum: a}}\n" + TEMPLATES,
            "DIR/x.yaml:6: unknown key `fields.text.colum`\n  wanted: one of column, join, list, bio, turns,",
        ),
        (
            HEAD + "fields: {text: {list: [a], default: b}}\n" + TEMPLATES,
            "DIR/x.yaml:6: `fields.text`: `default` does not go with `list`",
        ),
        (
            HEAD + "templates:\n  - {id: a, prompt: '{{ text }}{{ options_ }}', completion: b}\n",
            "DIR/x.yaml:7: template `a`: it shows `options_`, but the task has no `choices`",
        ),
        (
            HEAD + "fields: {text: text, checks: t}\ntests: '{{ check }}'\n" + TEMPLATES,
            "DIR/x.yaml:7: `tests`: there is no field `check`; the task has text, checks; did you mean `checks`?",
        ),
        (
            HEAD + "tests: '{{ checks }'\n" + TEMPLATES,
            "DIR/x.yaml:6: `tests`: line 1: unexpected '}'",
        ),
        (
            CHOOSES + "tests: '{{ checks }}'\n" + TEMPLATES,
            "DIR/x.yaml:7: `tests`: a classification has none; they go with kind generation, whose answers may be",
        ),
        (
            CHOOSES.replace("[a, b]", "[a]") + TEMPLATES,
            "DIR/x.yaml:6: `choices`: one choice, 'a', leaves nothing to choose; two or more are needed",
        ),
        (
            CHOOSES.replace("[a, b]", "[a, a]") + TEMPLATES,
            "DIR/x.yaml:6: `choices`: two choices have the same name",
        ),
        (
            CHOOSES + "templates:\n  - {id: a, prompt: 'Is it {{ label }}?', completion: '{{ label }}'}\n",
            "DIR/x.yaml:8: template `a`: the prompt gives away `label`, the answer; if it predicts something else, "
            "mark it `form: inverted`",
        ),
        (
            CHOOSES + "templates:\n  - {id: a, prompt: 'Is it?', completion: 'Yes'}\n",
            "DIR/x.yaml:8: template `a`: the completion does not say `{{ label }}`, the answer",
        ),
        (
            CHOOSES + "templates:\n  - {id: a, prompt: q, completion: '{{ label }}', answers: [x, y, z]}\n",
            "DIR/x.yaml:8: template `a`: it has 3 `answers` for 2 choices",
        ),
        (
            CHOOSES
            + "templates:\n  - {id: a, style: lettered, prompt: q, completion: 'It is {{ label }}.'}\n",
            "DIR/x.yaml:8: template `a`: `style: lettered` is for letters: the completion has to be the answer alone",
        ),
        (
            CHOOSES.replace("choices: {", "fields: {text: t, label: l}\nchoices: {").replace(
                "field: label", "field: lable"
            )
            + TEMPLATES,
            "DIR/x.yaml:7: `choices`: there is no field `lable`; the task has text, label; did you mean `label`?",
        ),
        (
            CHOOSES.replace("[a, b]", "[yes, no]") + TEMPLATES,
            "DIR/x.yaml:6: `choices.names.0` is True\n  wanted: a list of two or more answers; an integer 0 means the "
            "first\n  next:   YAML takes yes, no, on, off, true and false for true and false: put them in quotes",
        ),
        (
            CHOOSES + "templates:\n  - {id: a, form: inverted, prompt: q, completion: r}\n",
            "DIR/x.yaml: every template trains only; one `form: direct` is needed to evaluate the task",
        ),
        (
            "name: x\nkind: text\nlicense: MIT\nsource: {files: x.jsonl}\nmetric: bleu\n",
            "DIR/x.yaml: kind text has neither templates nor a metric: its rows are used as they are",
        ),
    ],
)
def test_wording_of_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("value", "label"),
    [("positive", "positive"), (" positive\n", "positive"), (1, "positive"), ("0", "negative")],
)
def test_labels_are_names_or_numbers(value: object, label: str) -> None:
    example = make().example({"text": "Fun.", "label": value})
    assert example.label == label
    assert example.fields == {"text": "Fun.", "label": label}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "a"}, "no column `label`; the row has text"),
        ({"text": "a", "label": None}, "`label` is null"),
        ({"text": " \n", "label": 1}, "`text` is empty"),
        ({"text": "a", "label": 2}, "`label` is '2'; wanted one of negative, positive"),
        ({"text": "a", "label": -1}, "`label` is '-1'; wanted one of negative, positive"),
        ({"text": "a", "label": "Positive"}, "`label` is 'Positive'; wanted one of negative, positive"),
        ({"text": "a", "label": "1.0"}, "`label` is '1.0'; wanted one of negative, positive"),
        ({"text": "a", "label": "9" * 5000}, "Exceeds the limit"),
    ],
)
def test_reason_of_a_bad_row(row: dict[str, object], reason: str) -> None:
    task = make(fields={"text": "text", "label": "label"})
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        task.example(row)


def test_columns_get_the_fields_names_and_others_are_left_out() -> None:
    task = make(fields={"text": "review", "label": "stars"})
    example = task.example({"id": 7, "stars": 1, "review": "Fun.", "extra": None})
    assert example.fields == {"text": "Fun.", "label": "positive"}


names = st.text(min_size=1, max_size=5)
values = st.text(min_size=1, max_size=10).filter(str.strip)


plain: dict[str, Any] = {
    "kind": "generation",
    "choices": None,
    "metric": "exact_match",
    "templates": (TemplateSpec(id="a", prompt="a", completion="b"),),
}


@given(st.dictionaries(names, values, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_an_id_is_of_the_content_alone(row: dict[str, str], random: Any) -> None:
    columns = list(row)
    task = make(**plain, fields={c: c for c in columns})
    random.shuffle(columns)
    one, other = task.example(row), task.example({c: f" {row[c]}\n" for c in columns})
    assert one.id == other.id
    assert len(one.id) == 16
    assert int(one.id, 16) >= 0
    changed = {**row, columns[0]: row[columns[0]].strip() + "!"}
    assert task.example(changed).id != one.id
    other_name = make(**plain, name="other", fields={c: c for c in columns})
    assert other_name.example(row).id != one.id
    assert json.loads(json.dumps(one.fields)) == one.fields


def test_an_id_is_the_one_that_was_written_down() -> None:
    # a change here moves every example to another split
    assert make().example({"text": "Fun.", "label": 1}).id == ID
    assert make().example({"label": "positive", "text": "Fun."}).id == ID


ID = "1c76e2c15edbcd8e"


# --- multiple choice: every row brings its options


def chooser(**choices: Any) -> Task:
    template = TemplateSpec(id="a", prompt="{{ stem }}{{ options_ }}", completion="{{ right }}")
    return make(
        kind="multiple_choice",
        choices=Choices(**{"field": "right", "from": "endings", **choices}),
        templates=(template,),
    )


@pytest.mark.parametrize("right", ["two", 1, "1", "B"], ids=repr)
def test_the_right_option_is_a_text_a_place_or_a_letter(right: object) -> None:
    example = chooser().example({"stem": "One,", "endings": ["one", "two", "three"], "right": right})
    assert example.fields == {"stem": "One,", "endings": ["one", "two", "three"], "right": "two"}
    assert example.label is None


def test_an_option_that_looks_like_a_place_is_meant_as_it_is_written() -> None:
    example = chooser().example({"stem": "1 + 1 =", "endings": ["2", "1", "0"], "right": "2"})
    assert example.fields["right"] == "2"


@pytest.mark.parametrize(
    ("endings", "right", "reason"),
    [
        (["one"], 0, "`endings` has 1 options; two or more are needed"),
        (["one", "one"], 0, "`endings` has two options that are the same, or an empty one"),
        (["one", "two"], 2, "`right` is '2': none of the 2 options, nor a place or letter of one"),
        ("one", 0, "`endings` is a str, not a list of options"),
    ],
)
def test_reason_of_a_bad_choice(endings: object, right: object, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        chooser().example({"stem": "x", "endings": endings, "right": right})


@pytest.mark.parametrize(("right", "text"), [(1, "1"), ("1", "2"), (0, "2"), ("0", "0")])
def test_numbers_as_options_are_told_from_places(right: object, text: str) -> None:
    """A number is a place; a text is an option where it is one."""
    example = chooser().example({"stem": "1 + 1 =", "endings": ["2", "1", "0"], "right": right})
    assert example.fields["right"] == (text if isinstance(right, int) else str(right))


def test_a_place_may_be_a_whole_float_as_tables_with_gaps_have_it() -> None:
    row = {"stem": "One,", "endings": ["1", "2", "3"]}
    assert [chooser().example({**row, "right": right}).fields["right"] for right in (1, 1.0)] == ["2", "2"]
    with pytest.raises(ValueError, match=r"`right` is '1\.5': none of the 3 options"):
        chooser().example({**row, "right": 1.5})


def test_the_place_of_a_letter_is_a_place_whatever_the_options_say() -> None:
    arc = tasks.load("arc_easy")
    row = {"question": "Legs of a bird?", "choices": {"text": ["1", "2", "3"], "label": ["A", "B", "C"]}}
    assert arc.example({**row, "answerKey": "B"}).fields["answer"] == "2"


def test_names_that_are_numbers_are_never_places() -> None:
    stars = make(choices=Choices(field="label", names=("1", "2", "3")))
    assert stars.example({"text": "a", "label": 1}).label == "1"
    with pytest.raises(ValueError, match="`label` is '0'; wanted one of 1, 2, 3"):
        stars.example({"text": "a", "label": 0})


def test_columns_that_nothing_names_do_not_make_two_examples_of_one() -> None:
    ids = {make().example({"text": "Fun.", "label": 1, "row": n}).id for n in range(5)}
    assert len(ids) == 1


def test_what_json_lacks_becomes_text() -> None:
    from datetime import date
    from decimal import Decimal

    example = make().example(
        {"text": "Fun.", "label": 1, "when": date(2020, 1, 2), "price": [Decimal("1.5")]}
    )
    assert example.fields["when"] == "2020-01-02"
    assert example.fields["price"] == ["1.5"]


# --- hooks


def hooked(folder: Path, body: str) -> Task:
    (folder / "prepare.py").write_text(body, encoding="utf-8")
    path = write_task(folder)
    path.write_text(path.read_text(encoding="utf-8") + "hook: prepare.py:row\n", encoding="utf-8")
    return tasks.load(file=str(path))


def test_a_hook_changes_rows_and_leaves_some_out(tmp_path: Path) -> None:
    task = hooked(
        tmp_path, "def row(row):\n    return {**row, 'text': row['text'].upper()} if row['label'] else None\n"
    )
    assert task.example({"text": "fun", "label": 1}).fields["text"] == "FUN"
    with pytest.raises(Skip):
        task.example({"text": "fun", "label": 0})


def test_a_hook_may_use_keys_that_json_has_not(tmp_path: Path) -> None:
    task = hooked(tmp_path, "def row(row):\n    return {**row, 'text': {1: 'x', 'b': (2, 'y')}}\n")
    assert task.example({"text": "fun", "label": 1}).fields["text"] == {"1": "x", "b": [2, "y"]}


def test_a_group_is_read_behind_the_hook_and_else_before_it(tmp_path: Path) -> None:
    body = "def row(row):\n    return {'text': row['text'], 'label': 1, 'by': row['by'].lower()}\n"
    row = {"text": "fun", "label": 1, "by": "Ada", "page": 3.0}
    task = hooked(tmp_path, body)
    for column, value in (("by", "ada"), ("page", "3"), ("none", None)):
        grouped = task.model_copy(update={"group": column})
        assert grouped.example(row).group == value


def test_what_a_hook_raises_is_the_rows_reason(tmp_path: Path) -> None:
    task = hooked(tmp_path, "def row(row):\n    return 1 / 0\n")
    with pytest.raises(ValueError, match=r"the hook prepare.py:row: ZeroDivisionError: division by zero"):
        task.example({"text": "fun", "label": 1})


def test_a_hook_that_is_not_there_is_named(tmp_path: Path) -> None:
    task = hooked(tmp_path, "def other(row):\n    return row\n")
    with pytest.raises(IftError, match="has no function `row`"):
        task.example({"text": "fun", "label": 1})
    (tmp_path / "prepare.py").unlink()
    with pytest.raises(IftError, match=r"no file .*prepare.py for the hook"):
        tasks.load(file=str(tmp_path / "films.yaml")).example({"text": "fun", "label": 1})


# --- kinds without templates


def test_a_hook_that_does_not_load_has_its_line(tmp_path: Path) -> None:
    task = hooked(tmp_path, "def row(row):\n    return (\n")
    with pytest.raises(IftError, match=r"prepare.py:2: the hook prepare.py:row does not load: SyntaxError"):
        task.example({"text": "fun", "label": 1})


def test_chat_and_text_are_used_as_they_are() -> None:
    chat = Task(name="c", kind="chat", license="MIT", source=Source(files="x.jsonl"))
    example = chat.example(
        {"messages": [{"from": "human", "value": " Hi "}, {"from": "gpt", "value": "Hello"}]}
    )
    assert example.fields == {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    }
    text = Task(name="t", kind="text", license="MIT", source=Source(files="x.jsonl"), fields={"text": "body"})
    assert text.example({"body": " Once. "}).fields == {"text": "Once."}
    assert (chat.baseline, make().baseline) == (0.0, 0.5)


def test_columns_that_no_template_names_may_be_empty() -> None:
    task = make()
    assert task.example({"text": "Fun.", "label": 1, "note": None}).fields == {
        "text": "Fun.",
        "label": "positive",
    }
    with pytest.raises(ValueError, match="`text` is null"):
        task.example({"text": None, "label": 1})


PARTS = [{"type": "text", "text": "Look:"}, {"type": "text", "text": "a cat"}]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "User", "content": " Hi "}, {"role": "user", "content": "Hi"}),
        ({"role": "developer", "content": "Be kind."}, {"role": "system", "content": "Be kind."}),
        ({"role": "user", "content": PARTS}, {"role": "user", "content": "Look:\na cat"}),
        (
            {"from": "gpt", "value": "Hello", "weight": 0},
            {"role": "assistant", "content": "Hello", "weight": "0"},
        ),
        (
            {"role": "assistant", "content": "Hello", "train": False},
            {"role": "assistant", "content": "Hello", "weight": "0"},
        ),
        ({"role": "assistant", "content": "Hello", "weight": 1}, {"role": "assistant", "content": "Hello"}),
    ],
)
def test_a_turn_is_read_as_people_write_it(turn: dict[str, Any], message: dict[str, str]) -> None:
    assert fields.turns([turn], "messages") == [message]
    assert fields.turns([message], "messages") == [message]  # what was read reads the same again


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        (
            {"role": "user", "content": [{"type": "image_url"}]},
            "has a part of the type 'image_url'; only text is",
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
            "calls a tool, which is not trained",
        ),
        ({"role": "tool", "content": "42"}, "is by 'tool'; wanted one of system, developer, user"),
        ({"role": "user", "content": None}, "has no text"),
        ({"role": ["user"], "content": "Hi"}, "is by ['user']; wanted one of system, developer, user"),
    ],
)
def test_a_turn_that_cannot_be_trained_says_why(turn: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"turn 1 of `messages` {re.escape(why)}"):
        fields.turns([turn], "messages")


EXCHANGE = fields.FieldSpec.model_validate(
    {"turns": {"system": "system", "history": "user", "instruction": "user", "output": "assistant"}}
)


@pytest.mark.parametrize(
    "text",
    [
        '["red", "green"]',
        "[]",
        '[["a", "b"], ["c", "d"]]',
        '[{"role": "admin", "name": "Ada"}]',
        "[" * 200_000,
    ],
)
def test_a_list_in_json_may_be_what_somebody_says(text: str) -> None:
    row = {"system": "Be brief", "instruction": "List two colours as JSON", "output": text}
    assert EXCHANGE.value(row) == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "List two colours as JSON"},
        {"role": "assistant", "content": text},
    ]
    assert EXCHANGE.value({"instruction": text, "output": "yes"})[0] == {"role": "user", "content": text}


def test_a_dialogue_may_be_json_in_a_text() -> None:
    row = {
        "history": '[["Hi", "Hello"]]',
        "instruction": '[{"from": "human", "value": "Bye"}]',
        "output": "So long",
    }
    turns = EXCHANGE.value(row)
    assert [turn["content"] for turn in turns] == ["Hi", "Hello", "Bye", "So long"]
    assert [turn["role"] for turn in turns] == 2 * ["user", "assistant"]
    with pytest.raises(ValueError, match="`messages` is a str, not a list"):
        fields.turns('[{"role": "user", "role": "assistant", "content": "Hi"}]', "messages")
    with pytest.raises(ValueError, match="`messages` is a str, not a list"):
        fields.turns("[" * 200_000, "messages")
