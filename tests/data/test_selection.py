"""Which tasks a run uses: names, patterns, clusters, data; what is held out and what that forbids."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_task

from ift.data.mixture import leaves
from ift.data.selection import REPLAY, Selection, select
from ift.errors import IftError
from ift.spec import MixtureSpec, Replay, TaskRef
from ift.tasks.clusters import CLUSTERS, held_out


def chosen(*refs: Any, folders: tuple[str, ...] = (), **mixture: Any) -> Selection:
    named = [ref if isinstance(ref, TaskRef) else TaskRef(name=ref) for ref in refs]
    return select(named, MixtureSpec(**mixture), folders=folders)


def refusal(*refs: Any, **mixture: Any) -> str:
    with pytest.raises(IftError) as caught:
        chosen(*refs, **mixture)
    return str(caught.value)


def test_names_patterns_and_clusters() -> None:
    assert list(chosen("trec").tasks) == ["trec"]
    wmt = list(chosen("wmt*").tasks)
    assert len(wmt) >= 3
    assert all(name.startswith("wmt") for name in wmt)
    topic = chosen(TaskRef(cluster="topic_and_intent"))
    assert {t.cluster for t in topic.tasks.values()} == {"topic_and_intent"}
    assert leaves(topic.mix) == list(topic.tasks)
    assert len(chosen("*").tasks) >= 60


def test_some_templates_of_a_task() -> None:
    ref = TaskRef(name="rotten_tomatoes", templates=("critic", "classify"))
    task = chosen(ref).tasks["rotten_tomatoes"]
    assert [t.id for t in task.wordings] == [t.id for t in task.evaluation_wordings] == ["classify", "critic"]
    assert "did you mean `critic`?" in refusal(TaskRef(name="rotten_tomatoes", templates=("critc",)))
    assert "train only" in refusal(TaskRef(name="rotten_tomatoes", templates=("write_sentence",)))


def test_nested_mixes_keep_their_rules_and_weights() -> None:
    inner = TaskRef(
        mix="qa", weight=3.0, rule="equal", cap=10, tasks=(TaskRef(name="squad"), TaskRef(name="boolq"))
    )
    selection = chosen("trec", inner, rule="temperature", temperature=2.0)
    first, second = selection.mix.members
    assert (selection.mix.rule, selection.mix.temperature) == ("temperature", 2.0)
    assert first.name == "trec"
    assert second.name == "qa"
    assert second.weight == 3.0
    assert leaves(second) == ["squad", "boolq"]


def test_mistakes_are_named() -> None:
    assert refusal("trek").splitlines()[0] == "no task `trek` in the library"
    assert "did you mean `trec`?" in refusal("trek")
    assert refusal("trec", "trec").startswith("the task `trec` stands in `tasks` twice")
    assert refusal("zz*").startswith("no task is called like `zz*`")
    assert "did you mean `toxicity`?" in refusal(TaskRef(cluster="toxicty"))
    assert refusal("trec", rule="fixed").startswith(
        "`trec` has no weight, and the rule of `mixture` is fixed"
    )


# --- data without a task file


def write(path: Path, *rows: dict[str, Any]) -> TaskRef:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TaskRef(data=str(path))


@pytest.mark.parametrize(
    ("row", "kind", "fields"),
    [
        (
            {"prompt": "Hi", "completion": "Hello<|endoftext|>"},
            "generation",
            {"prompt": "Hi", "completion": "Hello"},
        ),
        ({"prompt": "Hi", "response": "Hello</s>"}, "generation", {"prompt": "Hi", "completion": "Hello"}),
        (
            {"instruction": "Add.", "input": "", "output": "2"},
            "generation",
            {"instruction": "Add.", "input": "", "output": "2"},
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            "chat",
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        ),
        (
            {
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
                "n": 1,
            },
            "chat",
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        ),
        ({"text": "Once."}, "text", {"text": "Once."}),
    ],
)
def test_layouts_are_known_by_their_columns(
    tmp_path: Path, row: dict[str, Any], kind: str, fields: dict[str, Any]
) -> None:
    selection = chosen(write(tmp_path / "My-Data.v2.jsonl", row))
    task = selection.tasks["my_data_v2"]
    assert (task.kind, task.example(row).fields) == (kind, fields)
    for template in task.wordings:
        worded = template.word(fields, key="k")
        assert (worded.prompt, worded.completion) in [("Hi", "Hello"), ("Add.", "2")]


def test_one_task_a_file_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", {"prompt": "Hi", "completion": name})
    write(tmp_path / "empty.jsonl")
    selection = chosen(TaskRef(data=str(tmp_path / "*.jsonl"), cluster="dialogue"))
    assert list(selection.tasks) == ["a", "b"]
    assert {t.cluster for t in selection.tasks.values()} == {"dialogue"}
    assert selection.notes == [
        f"1 of 3 files of {tmp_path}/*.jsonl have no rows and are left out: empty.jsonl"
    ]
    assert "is empty" in refusal(TaskRef(data=str(tmp_path / "empty.jsonl")))


def test_other_columns_need_a_task_file(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "x.jsonl", {"text": "Fun.", "label": 1}))
    assert message.startswith(
        f"{tmp_path}/x.jsonl has the columns text, label\n  wanted: the columns of prompt and"
    )
    assert "docs/tasks.md" in message
    assert refusal(TaskRef(data=str(tmp_path / "none*.jsonl"))).startswith(
        f"no data file {tmp_path}/none*.jsonl"
    )


def test_what_a_task_file_would_say_may_stand_beside_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"prompt": "Hi", "completion": "Hello"}).data
    task = chosen(TaskRef(data=path)).tasks["mine"]
    assert (task.license, task.metric, task.system) == ("unstated", "rouge_l", "")
    ref = TaskRef(data=path, license="our own", metric="exact_match", system="Be brief.")
    task = chosen(ref).tasks["mine"]
    assert (task.license, task.metric, task.system) == ("our own", "exact_match", "Be brief.")
    with pytest.raises(ValueError, match="`license` goes with `data`"):
        TaskRef(name="trec", license="MIT")


def test_a_data_set_of_the_hub_is_told_apart_from_a_file(tmp_path: Path) -> None:
    message = refusal(TaskRef(data=str(tmp_path / "HuggingFaceH4" / "ultrachat_200k")))
    assert "{file: ultrachat_200k.yaml}" in message
    assert "source: {hub: {id: HuggingFaceH4/ultrachat_200k}}" in message
    assert "of the hub has" not in refusal(TaskRef(data=str(tmp_path / "rows" / "mine.jsonl")))
    assert "of the hub has" not in refusal(TaskRef(data=str(tmp_path / "mine")))


def test_many_parts_of_one_data_set_are_told_of(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"part-{number}.jsonl", {"prompt": "Hi", "completion": f"{number}"})
    (note,) = chosen(TaskRef(data=str(tmp_path / "part-*.jsonl"))).notes
    assert "is 10 tasks, one a file; parts of one data set want a task file with" in note
    (tmp_path / "part-9.jsonl").unlink()
    assert not chosen(TaskRef(data=str(tmp_path / "part-*.jsonl"))).notes


# --- held out


def test_a_cluster_goes_with_its_neighbours() -> None:
    assert held_out(["sentiment"]) == {"sentiment"}
    assert held_out(["paraphrase"]) == held_out(["inference"]) == {"paraphrase", "inference"}
    assert held_out(["commonsense"]) == {"commonsense", "reading_comprehension_with_commonsense"}
    assert held_out(["reading_comprehension_with_commonsense"]) == {
        "commonsense",
        "reading_comprehension",
        "reading_comprehension_with_commonsense",
    }
    with pytest.raises(IftError, match=r"no cluster `sentimant`") as caught:
        held_out(["sentimant"])
    assert "did you mean `sentiment`?" in str(caught.value)


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_what_is_held_out_is_evaluated_and_never_trained_on(cluster: str) -> None:
    selection = chosen("*", hold_out=(cluster,), overlap="allow")
    clusters = held_out([cluster])
    trained, out = leaves(selection.mix), selection.held_out
    assert {selection.tasks[name].cluster for name in out} <= clusters
    assert not {selection.tasks[name].cluster for name in trained} & clusters
    assert not set(trained) & set(out)


def test_rows_on_both_sides_are_an_error_unless_allowed(tmp_path: Path) -> None:
    write_task(tmp_path, name="films")
    again = write_task(tmp_path, name="again")
    text = again.read_text(encoding="utf-8")
    (tmp_path / "films.yaml").write_text(text.replace("name: again", "name: films\ncluster: sentiment"))
    refs = [TaskRef(file=str(tmp_path / name)) for name in ("films.yaml", "again.yaml")]
    message = refusal(*refs, "trec", hold_out=("sentiment",))
    assert message.startswith("`again` would be trained on the rows of `films`, which is held out\n")
    assert "mixture.overlap" in message
    assert leaves(chosen(*refs, "trec", hold_out=("sentiment",), overlap="allow").mix) == ["again", "trec"]
    removed = chosen(*refs, "trec", hold_out=("sentiment",), overlap="remove")
    assert (leaves(removed.mix), list(removed.tasks)) == (["trec"], ["films", "trec"])
    assert removed.notes == ["not trained on, for its rows are held out: again"]


def test_all_that_share_rows_go_wherever_they_stand_and_however_they_are_named(tmp_path: Path) -> None:
    for name in ("films", "one", "two"):
        write_task(tmp_path, name=name)
    text = (
        (tmp_path / "films.yaml")
        .read_text(encoding="utf-8")
        .replace("name: films", "name: films\ncluster: sentiment")
    )
    (tmp_path / "films.yaml").write_text(text, encoding="utf-8")
    two = (tmp_path / "two.yaml").read_text(encoding="utf-8")
    (tmp_path / "two.yaml").write_text(
        two.replace("rows.jsonl", str(tmp_path / "rows.jsonl")), encoding="utf-8"
    )
    other = tmp_path / "elsewhere"
    other.mkdir()
    write_task(other, name="innocent")  # its rows.jsonl is another file
    refs = [TaskRef(file=str(path)) for path in [*sorted(tmp_path.glob("*.yaml")), other / "innocent.yaml"]]
    removed = chosen(*refs, hold_out=("sentiment",), overlap="remove")
    assert list(removed.tasks) == ["films", "innocent"]
    replay = Replay(share=0.1, tasks=(refs[1],))
    rest = [refs[0], refs[3]]
    assert refusal(*rest, replay=replay, hold_out=("sentiment",), overlap="remove").startswith(
        "no task is left to replay: one have rows that are held out"
    )
    kept = chosen(*rest, replay=replay, hold_out=("sentiment",), overlap="allow")
    assert kept.replay is not None
    assert leaves(kept.replay) == ["one"]


def test_data_is_known_by_all_its_first_rows_and_told_apart_by_name(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "x.jsonl", {"text": "Fun."}, {"text": "Dull.", "label": 1}))
    assert "has the columns text, label" in message
    for folder in ("a[1]", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.jsonl", {"prompt": "Hi", "completion": folder})
    assert list(chosen(TaskRef(data=str(tmp_path / "a[1]" / "train.jsonl"))).tasks) == ["train"]
    message = refusal(TaskRef(data=str(tmp_path / "**" / "train.jsonl")))
    assert message.startswith(
        f"{tmp_path}/b/train.jsonl and {tmp_path}/a[1]/train.jsonl would both be the task `train`"
    )


def test_what_the_first_rows_lack_and_no_field_reads_makes_a_row_bad(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "Hello"}
    for name, later in (
        ("a", {"system": "Be kind."}),
        ("b", {"tools": [{"name": "f"}]}),
        ("c", {"history": [["x", "y"]]}),
    ):
        task = chosen(write(tmp_path / f"{name}.jsonl", *100 * [row], row | later)).tasks[name]
        with pytest.raises(ValueError, match=f"`{next(iter(later))}` says something, and no field reads it"):
            task.example(row | later)
        assert task.example(row | dict.fromkeys(later)).fields == task.example(row).fields
    read = chosen(write(tmp_path / "d.jsonl", {**row, "system": "Be kind."})).tasks["d"]
    assert len(read.example({**row, "history": [["x", "y"]]}).fields["messages"]) == 4


def test_holding_out_needs_something_on_both_sides() -> None:
    assert refusal("trec", hold_out=("sentiment",)).startswith(
        "no task of the held-out cluster sentiment stands in `tasks`"
    )
    assert refusal("trec", hold_out=("topic_and_intent",)).startswith(
        "every task belongs to the held-out cluster topic_and_intent or a neighbour of it"
    )


def test_replay_is_a_mix_beside_the_others() -> None:
    selection = chosen(
        "trec", replay=Replay(share=0.05, tasks=(TaskRef(name="dolly"), TaskRef(name="alpaca")))
    )
    assert selection.replay is not None
    assert selection.replay.name == REPLAY
    assert leaves(selection.replay) == ["dolly", "alpaca"]
    assert leaves(selection.mix) == ["trec"]
