"""`ift tasks` and `ift templates`, as somebody uses them who has a few task files of their own."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ift import listing
from ift.cli import main
from ift.errors import IftError

SOUPS = """\
name: soups
kind: classification
description: How hot is a soup?
cluster: kitchen
license: MIT
source: {files: {train: soups.jsonl, test: others.jsonl}, where: {eaten: "no"}}
fields:
  about: description
  heat: {column: degree, names: [cold, hot]}
choices: {field: heat, names: [cold, hot]}
metric: accuracy
templates:
  - id: ask
    prompt: "{{ about }}\\n\\nIs this soup cold or hot?{{ options_ }}"
    completion: "{{ heat }}"
    style: list
  - {id: yes_no, answers: ["no", "yes"], prompt: "{{ about }} Mind your tongue?", completion: "{{ heat }}"}
  - {id: describe, form: inverted, prompt: "Describe a {{ heat }} soup.", completion: "{{ about }}"}
"""
TALK = "name: talk\nkind: chat\nlicense: MIT\nsource: {files: talk.jsonl}\n"
ROWS = [
    {"description": "Steam [bold]rises[/bold].", "degree": 1, "eaten": "yes"},
    {"description": "", "degree": 1, "eaten": "no"},
    {"description": "Steam [bold]rises[/bold].", "degree": 1, "eaten": "no"},
    {"description": "Ice floats on it.", "degree": 0, "eaten": "no"},
]
MESSAGES = {"messages": [{"role": "user", "content": "Hot?"}, {"role": "assistant", "content": "Very."}]}


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    """A user's folder, in which they stand."""
    folder = tmp_path / "kitchen"
    folder.mkdir()
    (folder / "soups.yaml").write_text(SOUPS)
    (folder / "talk.yaml").write_text(TALK)
    (folder / "soups.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\nbroken\n")
    (folder / "talk.jsonl").write_text(json.dumps(MESSAGES) + "\n")
    monkeypatch.chdir(tmp_path)
    return folder


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints, which succeeds."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code in (0, None), err
    return out


def of_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(ran(capsys, *arguments, "--json"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that refuses."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    return err


def on_terminal(show: Any, rows: Any, width: int) -> list[str]:
    """The lines that a terminal of this width shows."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, record=True)
    show(rows, console=console)
    return console.export_text().splitlines()


@pytest.mark.usefixtures("kitchen")
def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = of_json(capsys, "tasks", "list", "--folder", "kitchen")
    names = [row["name"] for row in rows]
    assert names == sorted(names)
    assert {"soups", "talk", "rotten_tomatoes"} <= set(names)
    assert rows[names.index("soups")] == {
        "name": "soups",
        "kind": "classification",
        "cluster": "kitchen",
        "license": "MIT",
        "language": "en",
        "templates": 3,
        "metric": "accuracy",
        "source": "files: soups.jsonl, others.jsonl",
        "description": "How hot is a soup?",
        "file": "kitchen/soups.yaml",
    }
    assert (rows[names.index("talk")]["metric"], rows[names.index("talk")]["templates"]) == (None, 0)

    by_cluster = ("tasks", "list", "--folder", "kitchen", "--cluster", "kitchen")
    assert [row["name"] for row in of_json(capsys, *by_cluster)] == ["soups"]
    kinds = {row["kind"] for row in of_json(capsys, "tasks", "list", "--kind", "generation")}
    assert kinds == {"generation"}
    text = ran(capsys, *by_cluster)  # in a file nothing is cut
    assert text.split("\n")[0].split() == [
        "name",
        "kind",
        "cluster",
        "templates",
        "licence",
        "source",
        "metric",
    ]
    assert "files: soups.jsonl, others.jsonl" in text


@pytest.mark.parametrize("width", [80, 120, 160])
def test_lists_fit_the_terminal(width: int) -> None:
    tasks = listing.task_rows()
    lines = on_terminal(listing.show_tasks, tasks, width)
    assert len(lines) == len(tasks) + 2  # the heads and a hint
    assert max(map(len, lines)) <= max(width, len(lines[-1]))
    assert ("licence" in lines[0], "metric" in lines[0]) == (width > 80, width > 120)
    assert all(
        row["name"] in line and str(row["templates"]) in line
        for row, line in zip(tasks, lines[1:], strict=False)
    )

    templates = listing.template_rows(listing.find_all(["rotten_tomatoes"]))
    lines = on_terminal(listing.show_templates, templates, width)
    assert max(map(len, lines)) <= width
    assert all(
        f" {row['form']} " in line and row["id"][:7] in line
        for row, line in zip(templates, lines[1:], strict=True)
    )


def test_a_table_gives_way_in_its_widest_columns() -> None:
    rows = [{"id": "short", "form": "direct", "weight": 0.3, "prompt": "word\n" * 90, "task": "a" * 60}]
    rows.append({**rows[0], "task": "b"})
    head, line, _ = on_terminal(listing.show_templates, rows, 80)
    assert head.split() == ["task", "id", "form", "weight", "prompt"]
    task, id_, form, weight, *prompt = line.split()
    assert (id_, form, weight, prompt[:2]) == ("short", "direct", "0.3", ["word", "word"])
    assert task.endswith("…")
    assert prompt[-1].endswith("…")


def test_a_task_is_shown(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ran(capsys, "tasks", "show", "soups", "--folder", "kitchen")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "name soups",
        "How hot is a soup?",
        "kind classification",
        "cluster kitchen",
        "licence MIT",
        "language en",
        "source files: soups.jsonl, others.jsonl",
        "where {eaten: no}",
        "fields about: description",
        "heat: {column: degree, names: [cold, hot]}",
        "choices cold, hot",
        "answer `heat`",
        "metric accuracy, 50% by guessing",
        "templates 3 (2 direct, 1 inverted)",
        "ids ask, yes_no, describe",
        "file kitchen/soups.yaml",
    ]
    detail = of_json(capsys, "tasks", "show", "kitchen/soups.yaml")
    given = yaml.safe_load(SOUPS)
    assert detail["fields"] == given["fields"]
    assert detail["source"] == given["source"]
    assert [template["id"] for template in detail["templates"]] == ["ask", "yes_no", "describe"]
    assert set(of_json(capsys, "tasks", "show", "kitchen/talk.yaml")) == set(detail)
    assert "every column under its own name" in ran(capsys, "tasks", "show", "kitchen/talk.yaml")


@pytest.mark.usefixtures("kitchen")
def test_templates_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = of_json(capsys, "templates", "list", "kitchen/soups.yaml", "rotten_tomatoes")
    assert [row["id"] for row in rows if row["task"] == "soups"] == ["ask", "yes_no", "describe"]
    assert rows[2] == {
        "task": "soups",
        "id": "describe",
        "form": "inverted",
        "weight": 0.3,
        "answers": [],
        "prompt": "Describe a {{ heat }} soup.",
        "completion": "{{ about }}",
    }
    assert len(of_json(capsys, "templates", "list")) > len(rows)
    assert "no templates" in ran(capsys, "templates", "list", "kitchen/talk.yaml")
    assert of_json(capsys, "templates", "list", "kitchen/talk.yaml") == []

    text = ran(capsys, "templates", "show", "kitchen/soups.yaml", "yes_no")
    assert "soups · yes_no · direct · weight 1" in text
    assert "no | yes" in text
    assert "Mind your tongue?" in text
    assert "Describe" not in text
    shown = of_json(capsys, "templates", "show", "kitchen/soups.yaml")
    assert [row["id"] for row in shown] == ["ask", "yes_no", "describe"]


@pytest.mark.usefixtures("kitchen")
def test_rows_of_the_source_are_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    made = of_json(capsys, "templates", "render", "kitchen/soups.yaml")
    assert [row["template"] for row in made] == ["ask", "yes_no", "describe"]
    assert len({row["example"] for row in made}) == 1  # the first row that is wanted and can be used
    assert made[0]["prompt"].startswith("Steam [bold]rises[/bold].\n\nIs this soup cold or hot?\n\n")
    assert (made[0]["completion"], sorted(made[0]["choices"])) == ("hot", ["cold", "hot"])
    assert (made[1]["completion"], made[2]["completion"]) == ("yes", "Steam [bold]rises[/bold].")

    text = ran(capsys, "templates", "render", "kitchen/soups.yaml", "--id", "ask")
    assert text.count("soups · ask · direct · example ") == 2  # there are no more rows
    assert "Steam [bold]rises[/bold]." in text
    assert "completion ──" in text
    assert "or: cold" in text
    assert (
        len(of_json(capsys, "templates", "render", "kitchen/soups.yaml", "--id", "ask", "--count", "1")) == 1
    )

    chat = of_json(capsys, "templates", "render", "kitchen/talk.yaml")
    assert chat[0] | {"example": ""} == {"task": "talk", "example": ""} | MESSAGES
    assert "assistant ──" in ran(capsys, "templates", "render", "kitchen/talk.yaml")


def test_rows_of_one_s_own_are_rendered(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = json.dumps({"description": "Tepid.", "degree": "cold"})
    render = ("templates", "render", "kitchen/soups.yaml")
    made = of_json(capsys, *render, "--row", row, "--id", "describe")
    assert [(row["prompt"], row["completion"]) for row in made] == [("Describe a cold soup.", "Tepid.")]
    (kitchen / "own.csv").write_text("description,degree\nTepid.,0\nBoiling.,1\n")
    made = of_json(capsys, *render, "--rows", "kitchen/own.csv", "--count", "2")
    assert [row["template"] for row in made] == ["ask", "yes_no", "describe"] * 2


def test_a_template_that_cannot_word_a_row_says_so(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kitchen / "soups.yaml").write_text(SOUPS.replace("{{ about }} Mind", "{{ about[99] }} Mind"))
    made = of_json(capsys, "templates", "render", "kitchen/soups.yaml")
    assert "error" not in made[0]
    assert made[1]["error"].startswith("template `yes_no`, prompt: line 1: no item 99")
    assert "no item 99" in ran(capsys, "templates", "render", "kitchen/soups.yaml")


MISTAKES: list[tuple[Sequence[str], Sequence[str]]] = [
    (["tasks", "list", "--cluster", "sentimant"], ["no cluster `sentimant`", "did you mean `sentiment`?"]),
    (["tasks", "list", "--kind", "txt"], ["no kind `txt`", "did you mean `text`?"]),
    (["tasks", "list", "--kind", "chat", "--cluster", "arithmetic"], ["no task of cluster `arithmetic` kind `chat`"]),
    (["tasks", "list", "--folder", "nowhere"], ["no folder nowhere"]),
    (["tasks", "show", "rotten_tomatos"], ["no task `rotten_tomatos`", "did you mean `rotten_tomatoes`?"]),
    (["tasks", "show", "soups"], ["no task `soups`"]),
    (["tasks", "show", "nowhere.yaml"], ["no file nowhere.yaml"]),
    (["templates", "show", "kitchen/soups.yaml", "aks"], ["no template `aks`", "did you mean `ask`?"]),
    (["templates", "show", "kitchen/talk.yaml", "ask"], ["no template `ask`", "this one is of kind chat"]),
    (["templates", "render", "kitchen/soups.yaml", "--row", "{"], ["--row is not JSON"]),
    (["templates", "render", "kitchen/soups.yaml", "--row", "[1]"], ["--row is a list"]),
    (["templates", "render", "kitchen/soups.yaml", "--row", "{}"], ["row 1: no column `description`"]),
    (["templates", "render", "kitchen/soups.yaml", "--rows", "none.csv"], ["no data file none.csv"]),
    (["templates", "render", "kitchen/soups.yaml", "--row", "{}", "--rows", "x"], ["exclude each other"]),
    (["templates", "render", "kitchen/soups.yaml", "--count", "0"], ["x>=1"]),
    (["templates", "import", "nowhere", "--output", "out"], ["cannot read nowhere: No such file"]),
    (["templates", "import", "kitchen/soups.yaml", "--output", "out"], ["has no mapping `templates`"]),
    (["templates", "import", "kitchen", "--output", "out"], ["no file in kitchen could be taken over"]),
    (["templates", "import", "cache", "--output", "out"], ["cannot read cache"]),
]  # fmt: skip


@pytest.mark.usefixtures("kitchen")
@pytest.mark.parametrize(("arguments", "parts"), MISTAKES)
def test_mistakes_are_said(
    arguments: Sequence[str], parts: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, *arguments)
    assert all(part in message for part in parts), message


def test_a_source_without_usable_rows(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kitchen / "soups.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    message = refused(capsys, "templates", "render", "kitchen/soups.yaml")
    assert "no row of files: soups.jsonl, others.jsonl can be used" in message
    assert "soups.jsonl:1: `description` is empty" in message
    text = SOUPS.replace("files: {train: soups.jsonl, test: others.jsonl}", "package: soups==1.0/soups.csv")
    (kitchen / "soups.yaml").write_text(text)
    message = refused(capsys, "templates", "render", "kitchen/soups.yaml", "--id", "none")
    assert "no template `none`" in message  # before anything is fetched


def promptsource_file(dataset: str, **texts: str) -> str:
    templates = {f"id-{name}": {"name": name, "jinja": text} for name, text in texts.items()}
    return yaml.safe_dump({"dataset": dataset, "templates": templates})


def test_templates_are_imported(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = kitchen.parent / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    (elsewhere / "templates.yaml").write_text(
        promptsource_file("stews", good="{{ a }} ||| {{ b }}", bad="{{ a }}", odd="{{ a.__class__ }} ||| b")
    )
    (elsewhere / "more.yml").write_text(promptsource_file("imdb", good="{{ text }} Liked? ||| {{ label }}"))
    (elsewhere / "other.yaml").write_text("a: b\n")
    text = ran(capsys, "templates", "import", "elsewhere", "--output", "out")
    assert "2 tasks with 2 templates in out" in text
    assert "left out: 2 templates, 1 file\n" in text
    assert "· elsewhere/deep/templates.yaml:3: template `bad`: it has no `|||`" in text
    assert "template `odd`: its line 1: access to `__class__` is unsafe" in text
    assert "· elsewhere/deep/other.yaml: has no mapping `templates`" in text
    assert sorted(path.name for path in Path("out").iterdir()) == ["imdb_promptsource.yaml", "stews.yaml"]

    row = json.dumps({"a": "Soup, longer.", "b": "A stew."})
    made = of_json(capsys, "templates", "render", "stews", "--folder", "out", "--row", row)
    assert (made[0]["prompt"], made[0]["completion"]) == ("Soup, longer.", "A stew.")
    assert of_json(capsys, "tasks", "show", "imdb_promptsource", "--folder", "out")["source"]["hub"] == {
        "id": "imdb",
        "streaming": False,
    }

    before = (Path("out") / "stews.yaml").read_text()
    assert "out/imdb_promptsource.yaml is already there" in refused(
        capsys, "templates", "import", "elsewhere", "--output", "out"
    )
    assert (Path("out") / "stews.yaml").read_text() == before


def test_one_file_is_imported_or_refused(kitchen: Path) -> None:
    source = kitchen.parent / "one.yaml"
    source.write_text(promptsource_file("stews", good="{{ a }} ||| {{ b }}"))
    result = listing.import_promptsource(source, kitchen.parent / "out")
    assert list(result.written.values()) == [1]
    source.write_text(promptsource_file("stews", bad="{{ a }}"))
    with pytest.raises(IftError, match="no template can be used"):
        listing.import_promptsource(source, kitchen.parent / "other")
    assert not (kitchen.parent / "other").exists()
