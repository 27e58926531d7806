"""Solved examples before test items: the same for all of a task, from training alone, and as many as fit."""

from collections import Counter
from typing import Any

import pytest
from test_draws import gathered_of

from ift.data.gather import Gathered
from ift.data.items import items_of
from ift.data.shots import shot_items, solved_examples
from ift.errors import IftError
from ift.prompts.template import Template

SIZES = {"a": ("classification", 60), "b": ("generation", 40), "c": ("chat", 20)}


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    return gathered_of(tmp_path_factory.mktemp("shots"), SIZES, held_out=())


def asked(gathered: Gathered, tokenizer: Any, **changes: Any) -> list[dict[str, Any]]:
    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    settings: dict[str, Any] = {"shots": 3, "draws": 2, "limit": None, "context": 512}
    return shot_items(gathered, count=count, **{**settings, **changes})


def test_the_items_are_those_without_examples_in_other_words(gathered: Gathered, tiny_tokenizer: Any) -> None:
    plain = {(i["name"], i["id"]): i for i in items_of(gathered, [], limit=None)[0] if i["name"] != "c"}
    items = asked(gathered, tiny_tokenizer)
    assert Counter((i["name"], i["id"]) for i in items) == Counter(2 * list(plain))
    for item in items:
        same = plain[item["name"], item["id"]]
        assert len(item["prompt"]) > len(same["prompt"])
        # how options are shown is one and the same for all questions here: letters may stand for words
        assert (item["kind"], item["answer"]) == (same["kind"], same["answer"])
        assert len(item["choices"]) == len(same["choices"])


def test_all_questions_in_one_template_have_the_same_beginning(
    gathered: Gathered, tiny_tokenizer: Any
) -> None:
    by_context: dict[str, set[str]] = {}
    for item in asked(gathered, tiny_tokenizer):
        question = item["prompt"].rfind("film ")  # the last film is the one that is asked about
        begin = item["prompt"][: item["prompt"].rfind("\n", 0, question)]
        by_context.setdefault(item["context"], set()).add(begin)
    assert all(len(beginnings) == 1 for beginnings in by_context.values())
    assert {context.rpartition("/")[2] for context in by_context} == {"0", "1"}


def test_examples_are_from_training_and_their_labels_take_turns(gathered: Gathered) -> None:
    pool = gathered.splits["a"]["train"]
    known = {example.id for example in pool}
    for draw in range(5):
        four = solved_examples(gathered.tasks["a"], pool, 4, draw=draw)
        assert {e.id for e in four} <= known
        assert sorted(str(e.label) for e in four) == ["no", "no", "yes", "yes"]
        assert solved_examples(gathered.tasks["a"], pool, 2, draw=draw) == four[:2]  # fewer are the beginning
    assert solved_examples(gathered.tasks["a"], pool, 99, draw=0)[: len(pool)]


def test_a_solved_example_that_cannot_be_worded_costs_no_question(
    gathered: Gathered, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asked(gathered, tiny_tokenizer)
    broken = {
        solved_examples(gathered.tasks[name], gathered.splits[name]["train"], 3, draw=0)[1].id
        for name in ("a", "b")
    }
    word = Template.word

    def refusing(self: Template, fields: Any, *, key: str, **more: Any) -> Any:
        if key.rpartition("/")[2] in broken:
            raise IftError("it cannot be worded")
        return word(self, fields, key=key, **more)

    monkeypatch.setattr(Template, "word", refusing)
    left = asked(gathered, tiny_tokenizer)
    assert [(i["name"], i["id"], i["draw"]) for i in left] == [(i["name"], i["id"], i["draw"]) for i in whole]
    assert {i["shots"] for i in left if i["draw"] == 0} == {2}


def test_what_does_not_fit_is_left_out_from_the_end(gathered: Gathered, tiny_tokenizer: Any) -> None:
    roomy, tight = (asked(gathered, tiny_tokenizer, context=context) for context in (512, 190))
    assert {item["shots"] for item in roomy} == {3}
    assert all(item["shots"] < item["asked_shots"] == 3 for item in tight if item["name"] == "a")
    for wide, narrow in zip(roomy, tight, strict=True):
        if narrow["shots"]:
            shared = len(narrow["prompt"]) // 4
            assert wide["prompt"][:shared] == narrow["prompt"][:shared]


def test_the_limit_is_that_of_the_items(gathered: Gathered, tiny_tokenizer: Any) -> None:
    plain, _ = items_of(gathered, [], limit=2)
    few = asked(gathered, tiny_tokenizer, limit=2, draws=1)
    assert [i["id"] for i in few] == [i["id"] for i in plain if i["name"] != "c"]
