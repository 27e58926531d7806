"""Items become batches, batches become predictions, and neither batch nor actor shows in them."""

import copy
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import WORDS, make_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ift.cluster import Node
from ift.errors import IftError
from ift.evaluate import evaluator
from ift.evaluate.evaluator import batches, evaluate, predict_generations, predict_likelihoods
from ift.evaluate.generate import generate
from ift.evaluate.store import Store
from ift.models.base import load_model
from ift.prompts.chat import encode_completion, encode_prompt, end_of_turn

few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def make(kind: str, number: int, prompt: str, **fields: Any) -> dict[str, Any]:
    empty = {
        "metric": None,
        "system": "",
        "choices": [],
        "answer": None,
        "reference": None,
        "check": None,
        "max_new_tokens": None,
    }
    return {
        "suite": "probe",
        "name": kind,
        "id": f"{number}",
        "kind": kind,
        "prompt": prompt,
        **empty,
        **fields,
    }


@st.composite
def item(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(["multiple_choice", "reference", "generation"]))
    number, prompt = draw(st.integers(0, 99)), draw(SENTENCES)
    if kind == "multiple_choice":
        choices = draw(st.lists(SENTENCES, min_size=2, max_size=3, unique=True))
        # a task's items carry the length of an answer too; it means nothing here
        return make(
            kind, number, prompt, choices=choices, answer=0, max_new_tokens=draw(st.sampled_from([None, 9]))
        )
    if kind == "reference":
        return make(kind, number, prompt, reference=draw(SENTENCES))
    return make(kind, number, prompt, check={"list": 1}, max_new_tokens=draw(st.sampled_from([4, 30])))


def some_items() -> list[dict[str, Any]]:
    """Items of every kind, as they come: not sorted by anything."""
    items = []
    for i in range(12):
        prompt = " ".join(WORDS[(i * 5 + k) % len(WORDS)] for k in range(1 + i * 7 % 11))
        items += [
            make("multiple_choice", i, prompt, choices=["good", "very bad", "not dull"], answer=i % 3),
            make("generation", i, prompt, check={"min_words": 1}, max_new_tokens=6),
            make("reference", i, prompt, reference="the film was good and not long"),
        ]
    return items


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)


# --- batches ----------------------------------------------------------------------------------------------


@few
@given(items=st.lists(item(), max_size=30), batch_tokens=st.integers(16, 400))
def test_batches_hold_every_item_once(
    tiny_tokenizer: Any, items: list[dict[str, Any]], batch_tokens: int
) -> None:
    before = copy.deepcopy(items)
    groups = batches(tiny_tokenizer, items, batch_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(items)))
    assert groups == batches(tiny_tokenizer, items, batch_tokens)
    assert items == before


@few
@given(items=st.lists(item(), max_size=30), batch_tokens=st.integers(16, 400))
def test_batches_are_even_and_costly_ones_come_first(
    tiny_tokenizer: Any, items: list[dict[str, Any]], batch_tokens: int
) -> None:
    costs = []
    for group in batches(tiny_tokenizer, items, batch_tokens):
        lengths = [evaluator._length(tiny_tokenizer, items[i]) for i in group]
        generated = {items[i]["kind"] == "generation" for i in group}
        assert len(generated) == 1
        assert len({items[i]["max_new_tokens"] for i in group}) == 1 or not generated.pop()
        assert len(group) == 1 or len(group) * max(lengths) <= batch_tokens
        first = items[group[0]]
        budget = first["max_new_tokens"] if first["kind"] == "generation" else 0
        costs.append((budget, max(lengths)))
    assert costs == sorted(costs, reverse=True)


def test_no_item_no_batch_and_no_prediction(tiny_tokenizer: Any, tiny_model: Path) -> None:
    assert batches(tiny_tokenizer, [], 100) == []
    assert evaluate(tiny_model, [], actors=2, gpus=0, threads=1, batch_tokens=100) == []


def test_programs_run_with_consent_alone(tiny_model: Path) -> None:
    written = make("generation", 0, "two", metric="code", reference="assert two() == 2", max_new_tokens=4)
    with pytest.raises(IftError, match="runs programs that the model wrote"):
        evaluate(tiny_model, [written], actors=1, gpus=0, threads=1, batch_tokens=100)


@few
@given(items=st.lists(item(), max_size=30))
def test_which_other_tasks_are_asked_changes_no_batch(
    tiny_tokenizer: Any, items: list[dict[str, Any]]
) -> None:
    """So that a prediction is the same, to the last digit, with other probes or with fewer."""
    together = [[items[i] for i in group] for group in batches(tiny_tokenizer, items, 200)]
    for name in {one["name"] for one in items}:
        some = [one for one in items if one["name"] == name]
        alone = [[some[i] for i in group] for group in batches(tiny_tokenizer, some, 200)]
        assert [group for group in together if group[0]["name"] == name] == alone


# --- predictions ------------------------------------------------------------------------------------------


def loss(model: Any, tokenizer: Any, prompt: str, completion: list[int]) -> float:
    """Nats a token of a completion, by the model's own loss."""
    before = encode_prompt(tokenizer, prompt)
    labels = [-100] * len(before) + completion
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([before + completion]), labels=torch.tensor([labels])).loss)


def test_the_choice_of_the_lowest_loss_is_the_answer(model: Any, tiny_tokenizer: Any) -> None:
    choices = ["good", "bad and dull", "not very long", "short"]
    items = []
    for number, prompt in enumerate(["the film", "a very long review", "this is"]):
        losses = [
            loss(model, tiny_tokenizer, prompt, encode_completion(tiny_tokenizer, c)[:-1]) for c in choices
        ]
        ranking = sorted(range(4), key=losses.__getitem__)
        items.append(make("multiple_choice", number, prompt, choices=choices, answer=ranking[0]))
        items.append(make("multiple_choice", number, prompt, choices=choices, answer=ranking[1]))
        means = json.loads(predict_likelihoods(model, tiny_tokenizer, items[-1:])[0]["detail"])["length"]
        assert means == pytest.approx([-x for x in losses], abs=1e-4)
    predictions = predict_likelihoods(model, tiny_tokenizer, items)
    assert [p["score"] for p in predictions] == [1, 0] * 3
    assert [p["expected"] for p in predictions] == [choices[i["answer"]] for i in items]
    assert all(
        right["output"] == wrong["output"]
        for right, wrong in zip(predictions[::2], predictions[1::2], strict=True)
    )
    assert [p["output"] for p in predictions[::2]] == [p["expected"] for p in predictions[::2]]


@pytest.mark.parametrize("ranking", evaluator.RANKINGS)
def test_choices_are_ranked_as_asked(model: Any, tiny_tokenizer: Any, ranking: str) -> None:
    """Against the model's own loss, choice by choice."""
    choices = ["good", "bad and dull", "not very long", "short and bright and good"]
    tokens = [encode_completion(tiny_tokenizer, choice)[:-1] for choice in choices]
    prompts = ["the film", "a very long review", "this is"]
    items = [
        make("multiple_choice", i, p, choices=choices, answer=0, ranking=ranking)
        for i, p in enumerate(prompts)
    ]
    for prompt, found in zip(prompts, predict_likelihoods(model, tiny_tokenizer, items), strict=True):
        total = [-loss(model, tiny_tokenizer, prompt, t) * len(t) for t in tokens]
        without = [-loss(model, tiny_tokenizer, "Answer:", t) * len(t) for t in tokens]
        wanted = {
            "raw": total,
            "length": [x / len(t) for x, t in zip(total, tokens, strict=True)],
            "unconditional": [x - y for x, y in zip(total, without, strict=True)],
        }
        assert json.loads(found["detail"])[ranking] == pytest.approx(wanted[ranking], abs=1e-3)
        assert found["output"] == choices[max(range(4), key=wanted[ranking].__getitem__)]


@pytest.mark.parametrize(
    ("said", "graded"),
    [
        ("<think>\nso long a film\n</think>\n\ngood", "good"),
        ("<think></think>good", "good"),
        ("<think> a film </think> good <think> bad </think>", "good <think> bad </think>"),
        ("<think> so long a film", "<think> so long a film"),  # not closed: it grew too long
        ("good <think> bad </think>", "good <think> bad </think>"),
        ("good", "good"),
    ],
)
def test_reasoning_before_an_answer_is_kept_and_not_graded(
    tiny_tokenizer: Any, said: str, graded: str
) -> None:
    assert evaluator.without_reasoning(said) == graded

    class Says:
        def __getattr__(self, name: str) -> Any:
            return getattr(tiny_tokenizer, name)

        def decode(self, *_: Any, **__: Any) -> str:
            return said

    by_task = make("generation", 0, "is it?", metric="exact_match", reference=graded, max_new_tokens=4)
    by_rule = make("generation", 1, "is it?", check={"equals": graded}, max_new_tokens=4)
    found = predict_generations(lambda prompts, **_: [[1]] * len(prompts), Says(), [by_task, by_rule])
    assert [(p["score"], p["output"], p["predicted"]) for p in found] == [(1.0, said, graded)] * 2


@pytest.mark.parametrize("ranking", evaluator.RANKINGS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_of_likelihoods_that_are_no_numbers_none_wins(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranking: str, place: int
) -> None:
    def score(model: Any, trees: Any) -> Any:
        return [
            [[math.nan if i == place else -1.0] for i, _ in enumerate(tree.continuations)] for tree in trees
        ]

    monkeypatch.setattr(evaluator, "score", score)
    model = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False))
    asked = make("multiple_choice", 0, "the film", choices=["good", "bad", "dull"], answer=0, ranking=ranking)
    [found] = predict_likelihoods(model, tiny_tokenizer, [{**asked, "labels": ["A", "B", "C"]}])
    assert math.isnan(found["score"])
    assert (found["output"], found["predicted"], found["label"]) == ("", "", "A")
    store = Store(tmp_path, model="m")
    store.put([asked], [found], seconds=1.0)
    assert store.get([asked]) is None


def test_a_reference_is_scored_by_its_loss_with_the_end_of_the_turn(model: Any, tiny_tokenizer: Any) -> None:
    prompts = ["the film", "was this a good review"]
    references = ["not very good", "the review is long and very dull"]
    items = [
        make("reference", i, p, reference=r) for i, (p, r) in enumerate(zip(prompts, references, strict=True))
    ]
    scores = [p["score"] for p in predict_likelihoods(model, tiny_tokenizer, items)]
    wanted = [
        loss(model, tiny_tokenizer, p, encode_completion(tiny_tokenizer, r))
        for p, r in zip(prompts, references, strict=True)
    ]
    assert encode_completion(tiny_tokenizer, "good")[-1] == end_of_turn(tiny_tokenizer)
    assert scores == pytest.approx(wanted, abs=1e-4)


def test_generations_are_graded_by_rule_by_match_or_by_the_bases_length(
    tiny_tokenizer: Any,
) -> None:
    answer = encode_completion(tiny_tokenizer, "Good film")[:-1]
    length = {"length_of_base": 0.5}
    items = [
        make("generation", 0, "the", check={"max_words": 2}, max_new_tokens=8),
        make("generation", 1, "the", check={"min_words": 5}, max_new_tokens=8),
        make("generation", 2, "the", reference="good film.", metric="exact_match", max_new_tokens=8),
        make("generation", 3, "the", reference="bad film", metric="exact_match", max_new_tokens=8),
        make("generation", 4, "the", check=length, max_new_tokens=8),
        make("generation", 5, "the", check=length, max_new_tokens=8, base="a film of four"),
        make("generation", 6, "the", check=length, max_new_tokens=8, base="a film of five words"),
    ]
    predictions = predict_generations(lambda prompts, **_: [answer for _ in prompts], tiny_tokenizer, items)
    assert [p["score"] for p in predictions] == [1, 0, 1, 0, 1, 1, 0]
    assert {p["output"] for p in predictions} == {"Good film"}
    assert json.loads(predictions[1]["detail"]) == ["2 words, at least 5 wanted"]
    assert json.loads(predictions[6]["detail"]) == ["2 words, at least 3 wanted"]
    assert [p["expected"] for p in predictions[:4]] == [None, None, "good film.", "bad film"]


def test_a_model_without_a_chat_template_is_asked_all_the_same(tmp_path: Path) -> None:
    predictor = evaluator.Predictor(str(make_model(tmp_path, chat=False)), "float32", 1, gpus=0)
    items = some_items()[:6]
    for group in batches(predictor.tokenizer, items, 400):
        for found in predictor.predict([items[i] for i in group]):
            assert math.isfinite(found["score"])
            assert found["prompt_tokens"] > 0


def test_an_answer_without_a_word_is_kept_and_scores_nothing(
    tiny_tokenizer: Any,
) -> None:
    items = [
        make("generation", 0, "the", check={"max_words": 2}, max_new_tokens=8),
        make("generation", 1, "the", reference="good film", metric="rouge_l", max_new_tokens=8),
        make("generation", 2, "the", reference="good film", metric="exact_match", max_new_tokens=8),
    ]
    found = predict_generations(lambda prompts, **_: [[] for _ in prompts], tiny_tokenizer, items)
    assert [(p["output"], p["score"], p["new_tokens"]) for p in found] == [("", 0.0, 0)] * 3


# --- with Ray ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from ift import cluster

    with cluster.connect(None, workers=2):
        yield


@pytest.mark.slow
def test_predictions_come_in_the_items_order_whatever_the_number_of_actors(
    cluster: None, tiny_model: Path
) -> None:
    items = some_items()
    seen: list[tuple[int, int | None]] = []
    one = evaluate(tiny_model, items, actors=1, gpus=0, threads=1, batch_tokens=200)
    two = evaluate(
        tiny_model,
        items,
        actors=2,
        gpus=0,
        threads=1,
        batch_tokens=200,
        progress=lambda *done: seen.append(done),
    )
    assert [(p["kind"], p["id"]) for p in one] == [(i["kind"], i["id"]) for i in items]
    assert one == two
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(items), len(items))


@pytest.mark.slow
def test_the_base_models_answers_reach_the_rules(cluster: None, tiny_model: Path) -> None:
    items = [
        make("generation", i, "the film", check={"length_of_base": 1}, max_new_tokens=6) for i in range(2)
    ]
    options: dict[str, Any] = {"actors": 1, "gpus": 0, "threads": 1, "batch_tokens": 200}
    alone = evaluate(tiny_model, items, **options)
    base = [{**alone[0], "output": alone[0]["output"]}, {**alone[1], "output": "far longer " * 9}]
    again = evaluate(tiny_model, items, base=base, **options)
    assert [p["output"] for p in again] == [p["output"] for p in alone]
    assert [p["score"] for p in again] == [alone[0]["score"], 0]
    assert "at least 18 wanted" in again[1]["detail"]


@pytest.mark.slow
def test_an_evaluation_that_was_cut_short_goes_on_where_it_was(
    cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    items = some_items()
    options: dict[str, Any] = {"actors": 1, "gpus": 0, "threads": 1, "batch_tokens": 200}
    whole = evaluate(tiny_model, items, **options)
    store = Store(tmp_path, model="tiny")
    heard: list[int] = []

    def stop(done: int, total: int | None) -> None:
        heard.append(done)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model, items, store=store, progress=stop, **options)
    kept = len(list(store.folder.iterdir()))
    assert kept == 3
    computed: list[int] = []
    put = store.put
    store.put = lambda *args, **more: (computed.append(len(args[0])), put(*args, **more))[1]  # type: ignore[method-assign]
    assert evaluate(tiny_model, items, store=store, **options) == whole
    assert sum(computed) == len(items) - heard[-1]
    computed.clear()
    assert evaluate(tiny_model, items, store=store, **options) == whole
    assert computed == []


@pytest.mark.parametrize(
    ("gib", "gpus", "wanted"),
    [(1, 8, 1), (12, 1, 1), (50, 8, 1), (65, 8, 2), (141, 8, 3), (250, 4, 4)],  # of 80 GiB, a fifth left
)
def test_a_model_takes_as_many_gpus_as_it_needs(
    gib: int, gpus: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(monkeypatch, gib, gpus)
    assert evaluator.gpus_a_copy(Path("model"), "bfloat16") == wanted
    pool = evaluator.pool(16, wanted)
    assert pool["actors"] == 16 // wanted


@pytest.mark.parametrize(("quantized", "wanted"), [(False, 3), (True, 1)])
def test_an_adapter_takes_the_room_of_its_base(
    quantized: bool, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(monkeypatch, 141, 8)
    adapter, base = tmp_path / "adapter", tmp_path / "base"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    if quantized:
        (adapter / "quantized_base.json").write_text("{}")
    monkeypatch.setattr("ift.models.adapters.base_of", lambda _: base)
    counts = {adapter: 10**7, base: 141 * 2**29}
    monkeypatch.setattr("ift.models.base.parameter_count", counts.__getitem__)
    assert evaluator.gpus_a_copy(adapter, "bfloat16") == wanted


@pytest.mark.parametrize(("quantize", "wanted"), [("none", 3), ("4bit", 1)])
def test_a_base_of_4_bits_takes_the_room_of_4_bits(
    quantize: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(monkeypatch, 141, 8)
    assert evaluator.gpus_a_copy(Path("model"), "bfloat16", quantize) == wanted


def test_what_a_base_of_4_bits_answers_is_kept_apart(tmp_path: Path, tiny_model: Path) -> None:
    def folder(**how: Any) -> Path:
        return evaluator.store_of(tmp_path, tiny_model, gpus=1, dtype="bfloat16", **how).folder

    assert folder() == folder(quantize="none") != folder(quantize="4bit")


def test_what_is_too_much_for_the_memory_goes_in_halves(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = evaluator.Predictor(str(tiny_model), "float32", threads=1, gpus=0)
    asked, whole = list[int](), predictor._predicted

    def short(items: Sequence[Any]) -> list[Any]:
        asked.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError
        return whole(items)

    monkeypatch.setattr(predictor, "_predicted", short)
    items = [make("reference", n, "the", reference="good film") for n in range(5)]
    most = 2
    assert [p["id"] for p in predictor.predict(items)] == [item["id"] for item in items]
    assert asked == [5, 2, 3, 1, 2]
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        predictor.predict(items)


@pytest.mark.parametrize(("gpus", "asked", "wanted"), [(0, "auto", 4096), (2, "auto", 32768), (2, 100, 100)])
def test_a_gpu_takes_larger_batches(
    gpus: int, asked: Any, wanted: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stop(_: Any, __: Any, batch_tokens: int, **___: Any) -> None:
        raise Stop(batch_tokens)

    monkeypatch.setattr(evaluator, "batches", stop)
    with pytest.raises(Stop, match=f"^{wanted}$"):
        evaluate(tiny_model, some_items(), actors=1, gpus=gpus, threads=1, batch_tokens=asked)


def test_a_model_that_no_node_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    large(monkeypatch, 141, 2)
    with pytest.raises(IftError) as error:
        evaluator.gpus_a_copy(Path("model"), "bfloat16")
    assert error.value.what == (
        "a model of 141 GiB in bfloat16 needs 3 GPUs of 80 GiB to be evaluated, and the largest node has 2"
    )


def large(monkeypatch: pytest.MonkeyPatch, gib: int, gpus: int) -> None:
    """A model of so many GiB, on nodes with so many GPUs of 80 GiB. There are none here, so Ray's answer is made up."""
    monkeypatch.setattr("ift.models.base.parameter_count", lambda _: gib * 2**29)
    monkeypatch.setattr("ift.cluster.nodes_now", lambda: [Node("head", 8, 0), Node("worker", 64, gpus)])
    monkeypatch.setattr("ray.remote", lambda **_: lambda _: SimpleNamespace(remote=lambda: 80 * 2**30))
    monkeypatch.setattr("ray.get", lambda value: value)


def test_a_model_that_is_laid_out_layer_by_layer_answers_the_same(
    tiny_model: Path, tiny_tokenizer: Any
) -> None:
    """With the hooks that carry tensors from one GPU to the next; there is none here, so all parts lie on the CPU."""
    from accelerate import dispatch_model

    assert evaluator.place(2) == "auto"
    assert not hasattr(load_model(tiny_model, device="auto"), "hf_device_map")  # one device needs no map
    whole, parts = load_model(tiny_model), load_model(tiny_model)
    names = ["embed_tokens", "rotary_emb", "layers.0", "layers.1", "norm"]
    parts = dispatch_model(
        parts, {**{f"model.{name}": "cpu" for name in names}, "lm_head": "cpu"}, force_hooks=True
    )
    assert hasattr(parts.model.layers[1], "_hf_hook")
    written = [
        make("generation", n, text, check={"list": 1}, max_new_tokens=n + 3)
        for n, text in enumerate(WORDS[:5])
    ]
    ranked = [
        make("multiple_choice", n, text, choices=WORDS[5:8], answer=0) for n, text in enumerate(WORDS[:3])
    ]
    answers = [
        (
            predict_generations(partial(generate, model), tiny_tokenizer, written, encoder_decoder=False),
            predict_likelihoods(model, tiny_tokenizer, ranked),
        )
        for model in (whole, parts)
    ]
    assert answers[0] == answers[1]


def test_predictions_tell_other_questions_apart_and_old_ones_are_still_compared(
    model: Any, tiny_tokenizer: Any
) -> None:
    """By system prompt, choices, ranking, rules and the length of an answer, as far as both sides tell."""
    from ift.evaluate.forgetting import questions

    chosen = make("multiple_choice", 1, "the film", choices=["good", "bad"], answer=0)
    written = make("generation", 2, "the film", check={"min_words": 1}, max_new_tokens=4)
    others = (
        [{**chosen, "system": "this is a review"}, written],
        [{**chosen, "choices": ["good", "dull"]}, written],
        [{**chosen, "ranking": "raw"}, written],
        [chosen, {**written, "check": {"min_words": 2}}],
        [chosen, {**written, "max_new_tokens": 5}],
    )

    def predicted(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = partial(generate, model)
        made = predict_generations(answer, tiny_tokenizer, items[1:])
        return [*predict_likelihoods(model, tiny_tokenizer, items[:1]), *made]

    first = predicted([chosen, written])
    once, again = questions(first, predicted([chosen, written]))
    assert once == again
    for items in others:
        once, again = questions(first, predicted(items))
        assert once != again
    old = [{key: value for key, value in p.items() if key != "asked"} for p in first]
    once, again = questions(first, old)
    assert once == again
