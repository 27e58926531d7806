"""What an epoch shows: shares are hit, no exemplar is its query or a test row, and the seed words nothing."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ift.data import draws as drawing
from ift.data import mixture
from ift.data.draws import Draws, Request, Requests
from ift.data.examples import Pool, examples_of
from ift.data.gather import Gathered
from ift.data.items import items_of
from ift.data.mixture import Leaf, Mix
from ift.data.selection import Selection
from ift.data.split import set_apart
from ift.data.wording import Limits, Made, Words, worded
from ift.prompts import options
from ift.tasks.task import Task, of_values


def task_of(folder: Path, name: str, kind: str, size: int, cluster: str = "sentiment") -> Task:
    values: dict[str, Any] = {
        "kind": kind,
        "cluster": cluster,
        "license": "MIT",
        "source": {"files": f"{kind}-{size}.jsonl"},
    }
    if kind == "classification":
        values |= {
            "choices": {"field": "label", "names": ["no", "yes"]},
            "metric": "accuracy",
            "templates": [
                {"id": "ask", "prompt": "{{ text }} good?{{ options_ }}", "completion": "{{ label }}"},
                {"id": "tell", "prompt": "Judge: {{ text }}", "completion": "{{ label }}"},
                {"id": "write", "prompt": "Say {{ label }}", "completion": "{{ text }}", "form": "inverted"},
            ],
        }
    if kind == "generation":
        values |= {
            "metric": "exact_match",
            "system": "Be brief.",
            "templates": [
                {"id": "echo", "prompt": "Say {{ text }}", "completion": "{{ text | replace('void', '') }}"}
            ],
        }
    return of_values(name, values, folder, where=f"{name}.yaml")


def row_of(kind: str, n: int) -> dict[str, Any]:
    if kind == "chat":
        asked = {"role": "user", "content": f"was film {n} good"}
        return {"messages": [asked, {"role": "assistant", "content": f"not film {n}"}]}
    if kind == "text":
        return {"text": f"film {n} was long and dull. " * 9}
    return {"text": f"film {n} was bright", "label": n % 2}


def gathered_of(
    folder: Path,
    sizes: dict[str, tuple[str, int]],
    *,
    held_out: tuple[str, ...] = (),
    replay: str | None = None,
    row: Callable[[str, int], dict[str, Any]] = row_of,
) -> Gathered:
    """Some tasks of so many rows each, of which a fifth is tested and a tenth validates."""
    tasks = {name: task_of(folder, name, kind, size) for name, (kind, size) in sizes.items()}
    splits, examples = {}, {}
    for name, (kind, size) in sizes.items():
        rows = "".join(json.dumps(row(kind, n)) + "\n" for n in range(size))
        (folder / f"{kind}-{size}.jsonl").write_text(rows, encoding="utf-8")
        found = examples[name] = examples_of(tasks[name], folder / "cache")
        assert len(found) == size
        apart = set_apart(found.ids, np.arange(size), test=0.2, validation=0.1)
        apart["train"] = apart.pop("rest")
        splits[name] = {part: Pool(found, places) for part, places in apart.items()}
    leaf = [Leaf(name) for name in tasks if name not in held_out and name != replay]
    selection = Selection(
        tasks,
        Mix("tasks", members=tuple(leaf)),
        Mix("replay", members=(Leaf(replay),)) if replay else None,
        list(held_out),
    )
    return Gathered(selection, splits, examples=examples)


def example(gathered: Gathered, request: Request, place: int | None = None) -> Any:
    """What a request, or one of its exemplars, is about."""
    return gathered.examples[request.task][request.place if place is None else place]


SIZES = st.dictionaries(
    st.text("abcd", min_size=1, max_size=3),
    st.tuples(st.sampled_from(["classification", "generation", "chat", "text"]), st.integers(10, 60)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40)
@given(
    sizes=SIZES,
    few_shot=st.floats(0, 1),
    shown=st.none() | st.floats(0, 1),
    size=st.none() | st.integers(5, 150),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 2),
)
def test_an_epoch_keeps_what_the_mixture_promises(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: dict[str, tuple[str, int]],
    few_shot: float,
    shown: float | None,
    size: int | None,
    seed: int,
    epoch: int,
) -> None:
    gathered = gathered_of(tmp_path_factory.getbasetemp(), sizes)
    draws = Draws(size=size, few_shot=few_shot, options=shown, shots=4)
    counts = drawing.planned(gathered, draws)
    drawn = drawing.train_requests(gathered, counts, draws, seed=seed, epoch=epoch)
    requests = [request for some in drawn for request in some]
    again = drawing.train_requests(gathered, counts, draws, seed=seed, epoch=epoch)
    assert requests == [request for some in again for request in some]
    assert {some.task: len(some) for some in drawn} == {name: n for name, n in counts.items() if n}
    varied = [r for r in requests if few_shot or gathered.tasks[r.task].varies]
    assert len({(r.task, r.key) for r in varied}) == len(varied)
    tested = {
        (name, id_)
        for name, splits in gathered.splits.items()
        for part in ("validation", "test")
        for id_ in splits[part].ids.tolist()
    }
    for request in requests:
        assert example(gathered, request).id == request.example
        assert (request.task, request.id) not in tested
        exemplars = [int(example(gathered, request, place).id, 16) for place in request.exemplars]
        assert len(set(exemplars)) == len(exemplars) <= 4
        assert request.id not in exemplars
        assert set(exemplars) <= set(gathered.splits[request.task]["train"].ids.tolist())
    able = [r for r in requests if sizes[r.task][0] in ("classification", "generation")]
    assert abs(sum(bool(r.exemplars) for r in able) - few_shot * len(able)) <= 0.5
    assert not any(r.exemplars for r in requests if r not in able)
    if shown is not None:
        tasks = gathered.tasks
        can = [r for r in requests if tasks[r.task].choices and drawing._can_show_options(tasks[r.task], r)]
        assert abs(sum(bool(r.options) for r in requests) - shown * len(can)) <= 0.5


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    """A task of every kind but raw text."""
    sizes = {"films": ("classification", 20), "said": ("generation", 20), "chats": ("chat", 10)}
    return gathered_of(tmp_path_factory.mktemp("mixed"), sizes)


@settings(max_examples=10)
@given(st.integers(0, 3), st.integers(0, 3))
def test_another_seed_draws_another_order_and_words_nothing_anew(
    mixed: Gathered, tiny_tokenizer: Any, seed: int, other: int
) -> None:
    draws = Draws(options=0.5)
    first, second = (made(mixed, tiny_tokenizer, draws, seed=s) for s in (seed, other))
    assert {(r.task, r.key): one for r, one in first} == {(r.task, r.key): one for r, one in second}
    orders = [[(r.task, r.key) for r, _ in pairs] for pairs in (first, second)]
    assert (orders[0] == orders[1]) == (seed == other)


@given(st.data())
def test_some_of_the_requests_are_those_requests(mixed: Gathered, data: st.DataObject) -> None:
    draws = Draws(few_shot=0.5, options=0.5)
    drawn, *_ = drawing.train_requests(mixed, drawing.planned(mixed, draws), draws, seed=0, epoch=0)
    elements = data.draw(st.lists(st.integers(0, len(drawn) - 1), unique=True))
    some = drawn.some(np.array(elements, dtype=np.int64))
    assert list(some) == [drawn[i] for i in elements]
    with pytest.raises(IndexError):
        some[len(elements)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_replay_has_its_share_and_comes_on_top(tmp_path: Path, share: float) -> None:
    gathered = gathered_of(tmp_path, {"films": ("classification", 1000), "old": ("text", 100)}, replay="old")
    counts = drawing.planned(gathered, Draws(replay=share))
    assert counts["films"] == 700
    assert counts["old"] / sum(counts.values()) == pytest.approx(share, abs=1 / 700)
    within = drawing.planned(gathered, Draws(replay=share, size=400))
    assert sum(within.values()) == 400
    assert within["old"] == pytest.approx(400 * share, abs=1)


def test_repeats_beyond_the_limit_draw_a_warning(tmp_path: Path) -> None:
    gathered = gathered_of(tmp_path, {"a": ("generation", 100), "b": ("generation", 10)})
    counts = {"a": 70, "b": 70}
    assert drawing.repeats(gathered, counts, Draws(max_repeats=4), 1) == [
        "`b`: each of its 7 examples is seen 10.0 times in the run (mixture.max_repeats 4)"
    ]
    assert len(drawing.repeats(gathered, counts, Draws(max_repeats=4), 5)) == 2


def made(
    gathered: Gathered,
    tokenizer: Any,
    draws: Draws,
    max_length: int = 128,
    *,
    budget: int | None = None,
    cut: bool = False,
    seed: int = 1,
) -> list[tuple[Request, Made]]:
    """The first epoch, worded: a request with each of its documents."""
    counts = drawing.planned(gathered, draws)
    limits = Limits(max_length, budget, cut_prompts=cut)
    pairs = []
    for some in drawing.train_requests(gathered, counts, draws, seed=seed, epoch=0):
        words, lookup = Words.of(gathered.tasks[some.task]), gathered.examples[some.task].lookup
        found = worded(tokenizer, words, some, lookup, limits)
        pairs += [(request, one) for request, ones in zip(some, found, strict=True) for one in ones]
    return pairs


@pytest.mark.parametrize(("max_length", "budget"), [(80, None), (400, None), (400, 60)])
def test_only_the_querys_answer_is_supervised_and_the_budget_holds(
    tmp_path: Path, tiny_tokenizer: Any, max_length: int, budget: int | None
) -> None:
    gathered = gathered_of(tmp_path, {"films": ("classification", 60)})
    shots, offers = [], []
    for request, one in made(gathered, tiny_tokenizer, Draws(few_shot=1.0), max_length, budget=budget):
        assert one.document is not None
        assert len(one.document.ids) <= max_length
        start = one.document.supervised.index(True)
        assert all(one.document.supervised[start:])
        assert tiny_tokenizer.decode(one.document.ids[start:]) == f"{one.completion}<|im_end|>"
        prompt = tiny_tokenizer.decode(one.document.ids[:start])
        query = example(gathered, request).fields["text"]
        assert one.template == "write" or query in prompt
        offered = [example(gathered, request, place).fields["text"] for place in request.exemplars]
        assert len([text for text in offered if f"{text}" in prompt]) == one.shots <= len(offered)
        if budget and one.shots:
            assert len(tiny_tokenizer(one.prompt)["input_ids"]) <= budget
        shots.append(one.shots)
        offers.append(len(offered))
    if max_length == 400 and budget is None:
        assert shots == offers
    else:
        assert 0 < sum(shots) < sum(offers)


def test_the_drawing_of_a_solved_example_before_the_query(tmp_path: Path, tiny_tokenizer: Any) -> None:
    gathered = gathered_of(tmp_path, {"said": ("generation", 20)})
    for request, one in made(gathered, tiny_tokenizer, Draws(few_shot=1.0, shots=1)):
        assert one.document is not None
        [place] = request.exemplars
        solved, query = (example(gathered, request, p).fields["text"] for p in (place, request.place))
        pieces = [
            tiny_tokenizer.decode(
                [i for i, s in zip(one.document.ids, one.document.supervised, strict=True) if s == x]
            )
            for x in (False, True)
        ]
        assert re.fullmatch(
            rf"<\|im_start\|>system\nBe brief.<\|im_end\|>\n<\|im_start\|>user\n"
            rf"[^|]*Say {solved}\s[^|]*{solved}[^|]*Say {query}[^|]*"
            r"<\|im_end\|>\n<\|im_start\|>assistant\n",
            pieces[0],
        )
        assert pieces[1] == f"{query}<|im_end|>"


@settings(max_examples=20)
@given(max_length=st.integers(20, 90), cut=st.booleans())
def test_nothing_is_longer_than_it_may_be(
    mixed: Gathered, tiny_tokenizer: Any, max_length: int, cut: bool
) -> None:
    draws = Draws(few_shot=0.5)
    whole = {(r.task, r.key): one for r, one in made(mixed, tiny_tokenizer, draws, 1000)}
    for request, one in made(mixed, tiny_tokenizer, draws, max_length, cut=cut):
        alone = whole[request.task, request.key]
        assert one.template == alone.template
        if one.document is None:
            assert one.too_long
            assert one.reason is not None
            assert re.fullmatch(
                r"the answer alone leaves .*"
                if cut and request.task != "chats"
                else rf"\d+ tokens, over data.max_length {max_length}",
                one.reason,
            )
            continue
        assert len(one.document.ids) <= max_length
        assert one.document.ids[-one.document.supervised_tokens :] == [
            i for i, s in zip(alone.document.ids, alone.document.supervised, strict=True) if s
        ]
        assert cut or not one.cut
        assert not (one.cut and one.shots)


def test_chats_and_texts_are_used_as_they_are(tmp_path: Path, tiny_tokenizer: Any) -> None:
    sizes = {"chats": ("chat", 20), "texts": ("text", 20), "said": ("generation", 20)}
    gathered = gathered_of(tmp_path, sizes)
    pieces: Counter[str] = Counter()
    for request, one in made(gathered, tiny_tokenizer, Draws(few_shot=0.5), max_length=40):
        fields = example(gathered, request).fields
        pieces[request.task] += 1
        if request.task == "chats":
            assert one.document is not None
            answers = [i for i, s in zip(one.document.ids, one.document.supervised, strict=True) if s]
            assert tiny_tokenizer.decode(answers) == f"{fields['messages'][1]['content']}<|im_end|>"
        elif request.task == "texts":
            assert one.document is not None
            assert one.document.supervised == [False] + [True] * (len(one.document.ids) - 1)
        elif one.document:
            assert "<|im_start|>system\nBe brief.<|im_end|>" in tiny_tokenizer.decode(one.document.ids)
    assert pieces["chats"] == pieces["said"] == 14
    assert pieces["texts"] > 14  # one text is more than one piece


def test_items_are_of_trained_and_held_out_tasks_and_not_of_replay(tmp_path: Path) -> None:
    sizes = {"a": ("classification", 20), "b": ("classification", 30), "c": ("chat", 20), "d": ("text", 20)}
    gathered = gathered_of(tmp_path, sizes, held_out=("b",), replay="d")
    items, bad = items_of(gathered, [], limit=None)
    assert bad == []
    assert Counter((i["suite"], i["name"], i["kind"]) for i in items) == {
        ("task", "a", "multiple_choice"): 4,
        ("held_out", "b", "multiple_choice"): 6,
        ("task", "c", "generation"): 4,
    }
    assert mixture.leaves(gathered.selection.mix) == ["a", "c"]
    for item in items:
        if item["kind"] == "multiple_choice":
            assert item["choices"][item["answer"]] == item["reference"]
            assert not item["prompt"].startswith("Say")  # inverted templates only train


@pytest.mark.parametrize("shown", [0.0, 0.5, 1.0, None])
def test_exemplars_show_their_options_as_the_query_does(
    tmp_path: Path, tiny_tokenizer: Any, shown: float | None
) -> None:
    gathered = gathered_of(tmp_path, {"films": ("classification", 60)})
    blocks = set()
    for _, one in made(gathered, tiny_tokenizer, Draws(few_shot=1.0, options=shown, shots=2), max_length=400):
        if one.template == "write" or not one.shots:
            continue
        count = sum(
            one.prompt.count(opener) for opener in [*options._OPENERS, *(o for o, *_ in options._INLINE)]
        )
        assert (count > 0) == one.options_shown
        blocks.add(one.options_shown)
        if not one.options_shown:
            assert one.completion in ("no", "yes")
    assert blocks == {0.0: {False}, 1.0: {True}}.get(-1.0 if shown is None else shown, {False, True})


def half_void(kind: str, n: int) -> dict[str, Any]:
    """Rows of which every other one has no answer left once its template words it."""
    return row_of(kind, n) if n % 2 else {"text": "void" * (n + 1), "label": 0}


def test_an_exemplar_that_cannot_be_worded_is_left_out_and_the_query_stands(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    gathered = gathered_of(tmp_path, {"said": ("generation", 40)}, row=half_void)
    shots = 0
    for request, one in made(gathered, tiny_tokenizer, Draws(few_shot=1.0), max_length=400):
        void = "void" in example(gathered, request).fields["text"]
        assert (one.document is None) == void
        assert "void" not in one.prompt
        shots += one.shots
    assert shots


def test_validation_asks_only_for_the_answer(tmp_path: Path, tiny_tokenizer: Any) -> None:
    gathered = gathered_of(tmp_path, {"films": ("classification", 400)})
    words, lookup = Words.of(gathered.tasks["films"]), gathered.examples["films"].lookup
    counts = drawing.planned(gathered, Draws())
    requests: list[Requests] = [
        *drawing.train_requests(gathered, counts, Draws(), seed=1, epoch=0),
        *drawing.validation_requests(gathered, counts),
    ]
    seen = {
        (some.split, one.template)
        for some in requests
        for [one] in worded(tiny_tokenizer, words, some, lookup, Limits(128))
    }
    assert seen == {("train", t) for t in ("ask", "tell", "write")} | {
        ("validation", t) for t in ("ask", "tell")
    }


def test_a_test_row_that_cannot_be_worded_is_set_aside(tmp_path: Path) -> None:
    gathered = gathered_of(tmp_path, {"said": ("generation", 20)}, row=half_void)
    tested = gathered.splits["said"]["test"]
    void = [place for place, e in zip(tested.places, tested, strict=True) if "void" in e.fields["text"]]
    items, bad = items_of(gathered, [], limit=None)
    assert [(task, place) for task, place, _ in bad] == [("said", place) for place in void]
    assert len(items) + len(bad) == 4
    assert items
    assert bad
