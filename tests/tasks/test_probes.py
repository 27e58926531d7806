"""The probe suite: it is complete and even, and a faulty file is refused with its place."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from ift.errors import IftError
from ift.tasks.checks import check
from ift.tasks.probes import Probe, ProbeItem, load_probes

HEAD = "description: A trial.\nlicense: Apache-2.0\nlanguage: en\n"
CHOICE = f"name: trial\nkind: multiple_choice\n{HEAD}items:\n"
BASE = "Well, that depends on whom you ask. " * 6  # what a base model may answer to an open question
ANSWERS: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(
    Path(__file__).with_name("probe_answers.yaml").read_text(encoding="utf-8")
)
GENERATION = f"name: trial\nkind: generation\n{HEAD}max_new_tokens: 8\nitems:\n"


@pytest.fixture(scope="module")
def suite() -> list[Probe]:
    return load_probes()


def test_suite_is_complete(suite: list[Probe]) -> None:
    assert [probe.name for probe in suite] == [
        "arithmetic",
        "copying",
        "definitions",
        "entities",
        "everyday_reasoning",
        "explanations",
        "general_text",
        "instructions",
        "knowledge",
        "languages",
        "open_answers",
        "word_relations",
    ]
    assert {probe.kind for probe in suite} == {"multiple_choice", "reference", "generation"}
    least = {"multiple_choice": 40, "reference": 12, "generation": 12}
    for probe in suite:
        assert len(probe.items) >= least[probe.kind], probe.name
        assert probe.license == "Apache-2.0"
        assert (probe.max_new_tokens is None) == (probe.kind != "generation")
        assert (probe.max_new_tokens or 0) <= 96, "each token that is written costs time on a CPU"


def test_ids_and_prompts_are_unique(suite: list[Probe]) -> None:
    for probe in suite:
        assert len({item.id for item in probe.items}) == len(probe.items), probe.name
    prompts = Counter(" ".join(item.prompt.casefold().split()) for probe in suite for item in probe.items)
    assert [prompt for prompt, count in prompts.items() if count > 1] == []


def test_items_have_what_their_kind_is_graded_by(suite: list[Probe]) -> None:
    for probe in suite:
        for item in probe.items:
            where = (probe.name, item.id)
            assert bool(item.choices) == (item.answer is not None) == (probe.kind == "multiple_choice"), where
            assert (item.reference is not None) == (probe.kind == "reference"), where
            assert (item.check is not None) == (probe.kind == "generation"), where


def test_right_answers_are_spread_evenly(suite: list[Probe]) -> None:
    for probe in suite:
        if probe.kind == "multiple_choice":
            assert all(len(item.choices) == 4 for item in probe.items), probe.name
            places = Counter(item.answer for item in probe.items)
            assert max(places.values()) - min(places[place] for place in range(4)) <= 1, (probe.name, places)


def test_length_gives_no_answer_away(suite: list[Probe]) -> None:
    """In no probe is the right choice the longest one, or the shortest, more often than chance and a half."""
    for probe in suite:
        if probe.kind == "multiple_choice":
            for sign in (1, -1):
                outstanding = sum(_stands_out(item, sign) for item in probe.items)
                assert outstanding / len(probe.items) <= 0.25 * 1.5, (probe.name, sign)


def _stands_out(item: ProbeItem, sign: int) -> bool:
    lengths = [sign * len(choice) for choice in item.choices]
    assert item.answer is not None
    right = lengths.pop(item.answer)
    return right > max(lengths)


def test_explanations_have_two_to_four_sentences(suite: list[Probe]) -> None:
    explanations = next(probe for probe in suite if probe.name == "explanations")
    for item in explanations.items:
        assert 2 <= (item.reference or "").count(".") <= 4, item.id


def test_general_text_is_prose_of_some_length(suite: list[Probe]) -> None:
    texts = next(probe for probe in suite if probe.name == "general_text")
    for item in texts.items:
        assert item.prompt.startswith("Continue this "), item.id
        assert 80 <= len((item.reference or "").split()) <= 150, item.id
        assert "\n" not in (item.reference or ""), item.id


def _generated(suite: list[Probe]) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        probe.name: {item.id: item.check or {} for item in probe.items}
        for probe in suite
        if probe.kind == "generation"
    }


def test_every_generation_item_has_its_answers(suite: list[Probe]) -> None:
    assert {name: set(items) for name, items in ANSWERS.items()} == {
        name: set(items) for name, items in _generated(suite).items()
    }


@pytest.mark.parametrize(("probe", "item"), [(name, item) for name in ANSWERS for item in ANSWERS[name]])
def test_an_item_can_be_kept_and_broken(suite: list[Probe], probe: str, item: str) -> None:
    rules, answers = _generated(suite)[probe][item], ANSWERS[probe][item]
    assert check(answers["keeps"], rules, base=BASE) == []
    assert check(answers["breaks"], rules, base=BASE) != []


@pytest.mark.parametrize("output", ["", "positive", "Yes.", "1. Bananas"])
def test_what_a_narrow_model_writes_passes_hardly_anything(suite: list[Probe], output: str) -> None:
    checks = [item.check for probe in suite for item in probe.items if item.check]
    assert sum(not check(output, rules, base=BASE) for rules in checks) <= 1


def test_an_echo_of_the_prompt_does_not_pass(suite: list[Probe]) -> None:
    items = [item for probe in suite for item in probe.items if item.check]
    assert [item.id for item in items if not check(item.prompt, item.check or {}, base=BASE)] == []


def test_order_is_that_of_the_alphabet_whatever_is_asked() -> None:
    assert [probe.name for probe in load_probes(["knowledge", "arithmetic"])] == ["arithmetic", "knowledge"]
    assert load_probes([]) == []


def test_unknown_probe_names_its_nearest_neighbour() -> None:
    with pytest.raises(IftError) as error:
        load_probes(["knowlege"])
    assert error.value.what == "unknown probe `knowlege`"
    assert error.value.hint == "did you mean `knowledge`?"


def test_folder_without_probes(tmp_path: Path) -> None:
    with pytest.raises(IftError, match="no probes in"):
        load_probes(folder=tmp_path)


def test_reads_a_folder_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "trial.yaml").write_text(GENERATION + "  - {id: one, prompt: List two., check: {list: 2}}\n")
    (probe,) = load_probes(folder=tmp_path)
    assert (probe.name, probe.max_new_tokens, probe.items[0].check) == ("trial", 8, {"list": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "trial.yaml: a probe is []\n  wanted: a mapping of keys to values"),
        (
            CHOICE.replace("kind:", "kidn:") + "  []\n",
            "trial.yaml: unknown key `kidn`\n"
            "  wanted: one of name, kind, description, license, language, items\n"
            "  next:   did you mean `kind`?",
        ),
        (
            CHOICE.replace("name: trial", "name: other"),
            "trial.yaml: `name` is `other`\n  wanted: the name of the file, `trial`",
        ),
        (
            CHOICE.replace("multiple_choice", "multiple_choise"),
            "trial.yaml: `kind` is `multiple_choise`\n"
            "  wanted: one of multiple_choice, reference, generation\n"
            "  next:   did you mean `multiple_choice`?",
        ),
        (
            GENERATION.replace("max_new_tokens: 8", "max_new_tokens: many"),
            "trial.yaml: `max_new_tokens` is 'many'\n  wanted: a whole number of 1 or more",
        ),
        (CHOICE, "trial.yaml: `items` is None\n  wanted: a list of one or more items"),
        (
            CHOICE + "  - {id: one, prompt: Q, choices: [a, b], answr: 0}\n",
            "trial.yaml, item 1 (one): unknown key `answr`\n  wanted: one of id, prompt, choices, answer\n"
            "  next:   did you mean `answer`?",
        ),
        (
            CHOICE + "  - {id: one, prompt: Q, choices: [a, b]}\n",
            "trial.yaml, item 1 (one): no `answer`\n  wanted: the keys id, prompt, choices, answer",
        ),
        (
            CHOICE + "  - {id: one, prompt: Q, choices: [a, b], answer: 2}\n",
            "trial.yaml, item 1 (one): `answer` is 2\n  wanted: the index of the right choice, 0 to 1",
        ),
        (
            CHOICE + "  - {id: one, prompt: Q, choices: [7, 8], answer: 0}\n",
            "trial.yaml, item 1 (one): `choices` is [7, 8]\n"
            "  wanted: a list of two or more different texts (numbers in quotes)",
        ),
        (
            CHOICE + "  - {id: one, prompt: '', choices: [a, b], answer: 0}\n",
            "trial.yaml, item 1 (one): `prompt` is ''\n  wanted: a text that is not empty",
        ),
        (
            CHOICE + "  - {id: one, prompt: Q, choices: [a, b], answer: 0}\n" * 2,
            "trial.yaml: id `one` occurs twice\n  wanted: a different id for each item",
        ),
        (
            GENERATION + "  - {id: one, prompt: Q, check: {list: 0}}\n",
            "trial.yaml, item 1 (one): rule `list` in `check` has the argument 0\n"
            "  wanted: a whole number of 1 or more",
        ),
        (
            CHOICE + "  - just a text\n",
            "trial.yaml, item 1: an item is 'just a text'\n  wanted: a mapping of keys to values",
        ),
    ],
)
def test_faulty_file_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trial.yaml").write_text(text)
    with pytest.raises(IftError) as error:
        load_probes(folder=tmp_path)
    assert str(error.value) == message


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "trial.yaml").write_text("name: trial\nitems: [\n")
    with pytest.raises(IftError, match=r"trial\.yaml: not readable as YAML(.|\n)*line 3"):
        load_probes(folder=tmp_path)
