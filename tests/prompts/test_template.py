"""Templates: wording and choice are pure functions, and the answer asked for is the one given."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ift.errors import IftError
from ift.prompts.options import STYLES
from ift.prompts.template import Template, choose

FIELDS = {"text": "Fun.", "label": "positive"}
NAMES = [Template(f"t{i}", "{{ text }}", "{{ label }}") for i in range(5)]
ASK = Template(
    "ask",
    "Is this good?\n\n{{ text }}{{ options_ }}",
    "{{ label }}",
    answer="label",
    names=("negative", "positive"),
)
CHOICE = Template("choose", "{{ stem }}{{ options_ }}", "{{ right }}", answer="right", options_from="endings")
STEM = {"stem": "Water is", "endings": ["wet", "dry", "a kind of metal", "loud"], "right": "dry"}


def refusal(prompt: str) -> str:
    with pytest.raises(IftError) as caught:
        Template("ask", prompt, "{{ label }}").word(FIELDS, key="k")
    return str(caught.value)


def test_both_texts_lose_their_margins() -> None:
    template = Template("ask", "\n Is this good?\n\n{{ text }} \n", " {{ label }}\n")
    worded = template.word(FIELDS, key="k")
    assert (worded.prompt, worded.completion) == ("Is this good?\n\nFun.", "positive")
    assert (worded.template, worded.choices, worded.right) == ("ask", (), None)


@given(st.text())
def test_fields_are_text_and_never_template(text: str) -> None:
    worded = Template("ask", "<{{ text }}>", "x").word({"text": text + "{{ label }}{% if %}"}, key="k")
    assert worded.prompt == f"<{text}{{{{ label }}}}{{% if %}}>"


def test_mistakes_name_the_template_the_part_and_the_fields() -> None:
    assert refusal("{{ txet }}").startswith("template `ask`, prompt: ")
    assert "text, label" in refusal("{{ txet }}")
    assert "did you mean `text`" in refusal("{{ txet }}")
    with pytest.raises(IftError, match=r"template `ask`, completion: .*lable"):
        Template("ask", "{{ text }}", "{{ lable }}").word(FIELDS, key="k")


@pytest.mark.parametrize(
    ("prompt", "completion", "part"), [("{{ gone }}", "x", "prompt"), ("x", " {{ gone }}\n", "completion")]
)
def test_an_empty_side_is_refused(prompt: str, completion: str, part: str) -> None:
    with pytest.raises(IftError, match=f"template `ask`: the {part} comes out empty"):
        Template("ask", prompt, completion).word({"gone": "  "}, key="k")


# --- options


@given(st.text(max_size=10))
def test_options_stand_where_the_prompt_has_a_place_for_them(key: str) -> None:
    shown = ASK.word(FIELDS, key=key)
    assert shown.options_shown
    assert shown.prompt.startswith("Is this good?\n\nFun.\n\n")
    assert "negative" in shown.prompt
    hidden = ASK.word(FIELDS, key=key, show_options=False)
    assert hidden.prompt == "Is this good?\n\nFun."
    assert hidden.completion == "positive"
    assert not hidden.options_shown


@given(
    key=st.text(max_size=10), style=st.sampled_from([*STYLES, None]), right=st.sampled_from(STEM["endings"])
)
def test_the_answer_is_what_the_prompt_says_it_is(key: str, style: Any, right: str) -> None:
    worded = replace(CHOICE, style=style).word({**STEM, "right": right}, key=key, with_choices=True)
    assert worded.right is not None
    assert worded.choices[worded.right] == worded.completion
    assert len(set(worded.choices)) == 4
    if worded.completion in "ABCD":  # lettered: the line of that letter holds the right text
        line = next(
            ln for ln in worded.prompt.splitlines() if re.match(rf"[(\[]?{worded.completion}[)\].:]", ln)
        )
        assert line.endswith(f" {right}")
    else:
        assert worded.completion == right
        assert right in worded.prompt


def test_the_order_of_options_follows_the_key_and_covers_all_orders() -> None:
    orders = Counter(
        tuple(replace(CHOICE, style="list").word(STEM, key=f"{i}", with_choices=True).choices)
        for i in range(2000)
    )
    assert len(orders) == 24
    again = replace(CHOICE, style="list").word(STEM, key="7", with_choices=True)
    assert again == replace(CHOICE, style="list").word(STEM, key="7", with_choices=True)


def test_the_right_answer_has_no_favourite_place() -> None:
    places = Counter(CHOICE.word(STEM, key=f"{i}", with_choices=True).right for i in range(4000))
    # five standard deviations of a binomial: sqrt(4000 * 0.25 * 0.75) = 27
    assert all(abs(places[place] - 1000) < 5 * 27.4 for place in range(4))


@pytest.mark.parametrize("last", ["all of the above", "None of these", "both A and B", "B and C"])
def test_options_that_speak_of_places_keep_them(last: str) -> None:
    fields = {**STEM, "endings": ["wet", "dry", "cold", last]}
    for i in range(30):
        assert CHOICE.word(fields, key=f"{i}", with_choices=True, show_options=False).right == 1
        assert CHOICE.word(fields, key=f"{i}", with_choices=True).right == 1


def test_ordered_choices_are_not_shuffled() -> None:
    stars = Template(
        "s",
        "{{ text }}{{ options_ }}",
        "{{ stars }}",
        answer="stars",
        names=("1", "2", "3"),
        shuffle=False,
        style="list",
    )
    for i in range(30):
        worded = stars.word({"text": "x", "stars": "2"}, key=f"{i}", with_choices=True)
        assert worded.choices == ("1", "2", "3")


def test_own_words_for_the_answers() -> None:
    yes_no = replace(ASK, answers=("no", "yes"), style="list")
    worded = yes_no.word(FIELDS, key="k", with_choices=True)
    assert worded.completion == "yes"
    assert set(worded.choices) == {"no", "yes"}
    assert "positive" not in worded.prompt


def test_a_mark_for_options_is_added_where_the_prompt_has_no_place() -> None:
    bare = replace(ASK, prompt="Is this good?\n\n{{ text }}")
    assert not bare.word(FIELDS, key="k").options_shown
    assert bare.word(FIELDS, key="k", show_options=True).prompt == ASK.word(FIELDS, key="k").prompt


def test_inverted_templates_see_the_answer_and_show_no_options() -> None:
    write = Template("write", "Write a {{ label }} review.", "{{ text }}", form="inverted")
    worded = write.word(FIELDS, key="k", show_options=True)
    assert (worded.prompt, worded.completion, worded.options_shown) == (
        "Write a positive review.",
        "Fun.",
        False,
    )


def test_inverted_templates_have_their_own_words_too() -> None:
    write = replace(ASK, prompt="Write a {{ label }} review.", completion="{{ text }}", form="inverted")
    worded = replace(write, answers=("bad", "good")).word(FIELDS, key="k", with_choices=True)
    assert (worded.prompt, worded.completion, worded.choices) == ("Write a good review.", "Fun.", ())


def test_letters_are_asked_for_only_where_the_answer_stands_alone() -> None:
    sentence = replace(ASK, completion="It is {{ label }}.")
    expression = replace(ASK, completion="{{ 'good' if label == 'positive' else 'bad' }}")
    lower = replace(ASK, completion="{{ label | upper }}")
    for i in range(60):
        assert sentence.word(FIELDS, key=f"{i}").completion == "It is positive."
        assert expression.word(FIELDS, key=f"{i}").completion == "good"
        assert lower.word(FIELDS, key=f"{i}").completion == "POSITIVE"


def test_answers_as_a_text_are_rendered_and_parted() -> None:
    imported = Template(
        "i",
        "{{ text }} {{ answer_choices | join(' or ') }}?",
        "{{ answer_choices[n] }}",
        answers="no ||| {{ text }} ",
    )
    worded = imported.word({"text": "Fun.", "n": 1}, key="k", with_choices=True)
    assert worded.prompt == "Fun. no or Fun.?"
    assert worded.completion == "Fun."
    assert worded.right is not None
    assert worded.choices[worded.right] == "Fun."
    lettered = replace(imported, style="lettered").word(
        {"text": "Fun.", "n": 1}, key="k", show_options=True, with_choices=True
    )
    assert lettered.completion in ("A", "B")
    assert set(lettered.choices) == {"A", "B"}


def test_no_options_are_shown_when_the_answer_is_none_of_them() -> None:
    imported = Template("i", "{{ text }}", "It is {{ answer_choices[0] }}.", answers="no ||| yes")
    worded = imported.word(FIELDS, key="k", show_options=True, with_choices=True)
    assert (worded.prompt, worded.options_shown, worded.choices) == ("Fun.", False, ())


# --- choice


@given(pass_=st.integers(0, 100), example=st.text(max_size=20))
def test_choice_is_pure(pass_: int, example: str) -> None:
    first = choose(NAMES, pass_=pass_, example_id=example)
    assert first in NAMES
    assert choose(tuple(NAMES), pass_=pass_, example_id=example) is first
    assert choose(NAMES[:1], pass_=pass_, example_id=example) is NAMES[0]


def test_choice_is_spread_evenly() -> None:
    counts = Counter(choose(NAMES, pass_=0, example_id=f"{i}").id for i in range(5000))
    assert len(counts) == 5
    # five standard deviations of a binomial: sqrt(5000 * 0.2 * 0.8) = 28
    assert all(abs(count - 1000) < 5 * 28.3 for count in counts.values())


def test_weights_say_how_often_a_template_is_drawn() -> None:
    weighted = [replace(NAMES[0], weight=1.0), replace(NAMES[1], weight=0.3)]
    counts = Counter(choose(weighted, pass_=0, example_id=f"{i}").id for i in range(5000))
    # a share of 0.3 / 1.3 within five standard deviations: sqrt(5000 * 0.231 * 0.769) = 30
    assert abs(counts["t1"] - 5000 * 0.3 / 1.3) < 5 * 30


@pytest.mark.parametrize("other", [1, 2])
def test_choice_differs_between_passes(other: int) -> None:
    same = sum(
        choose(NAMES, pass_=0, example_id=f"{i}") is choose(NAMES, pass_=other, example_id=f"{i}")
        for i in range(2000)
    )
    assert abs(same / 2000 - 1 / 5) < 0.05  # as often the same as chance has it


def test_choice_is_the_one_that_was_written_down() -> None:
    # a change here rewords every stream: runs that were started before could not go on
    assert [choose(NAMES, pass_=p, example_id="3f").id for p in range(8)] == CHOSEN


CHOSEN = ["t1", "t1", "t4", "t4", "t0", "t0", "t4", "t2"]
