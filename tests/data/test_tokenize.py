"""What is supervised: the answers and their ends, and nothing else; of a raw text, all but each piece's first token."""

import copy
from itertools import groupby
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from ift.data.tokenize import Document, TooLong, conversation, documents, shortened, text
from ift.models import base
from ift.prompts.chat import encode_completion, encode_history, encode_prompt

# ordinary text: control tokens, which Hypothesis finds in the source and tries, are broken up
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda text: text.strip() and "<" not in text
)
turns = st.lists(words, min_size=2, max_size=7)
systems = st.just("") | words
END = "<|im_end|>"
LONG = 100_000

TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    # no system message, white space around answers
    "llama": (
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
        "<|im_start|>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}"
    ),
    # a system message is refused, all content stripped
    "gemma": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


@pytest.fixture(scope="module")
def tokenizers(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny tokenizer under every template, and without one."""
    made = {name: copy.deepcopy(tiny_tokenizer) for name in TEMPLATES}
    for name, tokenizer in made.items():
        tokenizer.chat_template = TEMPLATES[name]
    folder = tmp_path_factory.mktemp("base-tokenizer")
    make_tokenizer(folder, chat=False)
    return made | {"base": base.load_tokenizer(folder)}


def talk(*contents: str, system: str = "") -> list[dict[str, str]]:
    """`contents` as messages: a question, an answer, a question and so on."""
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)
    ]
    return [{"role": "system", "content": system}, *messages] if system else messages


def document(tokenizer: Any, prompt: str, completion: str, system: str = "") -> Document:
    """One instruction of any length, or the reason why it is none, raised."""
    [made] = documents(tokenizer, [(prompt, completion, system)])
    if isinstance(made, ValueError):
        raise made
    return made


def drawn(tokenizer: Any, made: Document) -> list[tuple[str, str]]:
    """The document's text in runs, each with its mark: x for what is supervised."""
    marked = zip(made.ids, made.supervised, strict=True)
    return [
        (".x"[counts], tokenizer.decode([token for token, _ in run]))
        for counts, run in groupby(marked, key=lambda pair: pair[1])
    ]


# instructions


@given(prompt=words, completion=words, system=systems)
def test_supervised_part_is_the_completion_and_its_end(
    tiny_tokenizer: Any, prompt: str, completion: str, system: str
) -> None:
    made = document(tiny_tokenizer, prompt, completion, system)
    head, tail = encode_prompt(tiny_tokenizer, prompt, system), encode_completion(tiny_tokenizer, completion)
    assert made.ids == head + tail
    assert made.supervised == [False] * len(head) + [True] * len(tail)
    assert made.supervised_tokens == len(tail) >= 2
    (_, read), (_, supervised) = drawn(tiny_tokenizer, made)
    assert read.endswith("<|im_start|>assistant\n")
    assert supervised == f"{completion}{END}"


def test_the_drawing_of_an_instruction(tokenizers: dict[str, Any]) -> None:
    def draw(name: str, system: str) -> list[tuple[str, str]]:
        made = document(tokenizers[name], "good?", "film good", system)
        return drawn(tokenizers[name], made)

    answer = ("x", "film good<|im_end|>")
    assert draw("chatml", "") == [(".", "<|im_start|>user\ngood?<|im_end|>\n<|im_start|>assistant\n"), answer]
    assert draw("chatml", "Be dull.") == [
        (
            ".",
            "<|im_start|>system\nBe dull.<|im_end|>\n<|im_start|>user\ngood?<|im_end|>\n<|im_start|>assistant\n",
        ),
        answer,
    ]
    assert draw("llama", "Be dull.") == [(".", "<|im_start|>[INST] Be dull.\n\ngood? [/INST]"), answer]
    assert draw("gemma", "Be dull.") == [
        (".", "<|im_start|>user\nBe dull.\n\ngood?<|im_end|>\n<|im_start|>assistant\n"),
        answer,
    ]
    assert draw("base", "") == [(".", "good?\n"), answer]
    assert draw("base", "Be dull.") == [(".", "Be dull.\n\ngood?\n"), answer]


@pytest.mark.parametrize("blank", ["", " \n"])
def test_an_empty_text_is_refused(tiny_tokenizer: Any, blank: str) -> None:
    with pytest.raises(ValueError, match=r"^the completion is empty: no token would be supervised$"):
        document(tiny_tokenizer, "good?", blank)
    with pytest.raises(ValueError, match=r"^the prompt is empty$"):
        document(tiny_tokenizer, blank, "good")
    with pytest.raises(ValueError, match=r"^turn 2, the assistant's, is empty$"):
        conversation(tiny_tokenizer, talk("good?", blank), max_length=100)
    with pytest.raises(ValueError, match=r"^the text is empty$"):
        text(tiny_tokenizer, blank, max_length=100)


def test_a_text_without_tokens_is_refused() -> None:
    class Deaf:
        chat_template = None
        all_special_tokens = ("</s>",)
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012
        eos_token_id = 2

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [7 for c in text if c.isalpha() and c.isascii()]}

    with pytest.raises(ValueError, match=r"^the tokenizer has no token for the completion$"):
        document(Deaf(), "good?", "é")
    with pytest.raises(ValueError, match=r"^the tokenizer has no token for an answer$"):
        conversation(Deaf(), talk("good?", "é"), max_length=100)
    with pytest.raises(ValueError, match=r"^the tokenizer has no token for the text$"):
        text(Deaf(), "é", max_length=100)


@given(st.lists(st.tuples(st.just("") | words, st.just(" ") | words, systems), max_size=8))
def test_many_instructions_are_each_as_it_is_alone(
    tiny_tokenizer: Any, many: list[tuple[str, str, str]]
) -> None:
    for one, made in zip(many, documents(tiny_tokenizer, many), strict=True):
        if one[0].strip() and one[1].strip():
            assert made == document(tiny_tokenizer, *one)
        else:
            assert isinstance(made, ValueError)
            with pytest.raises(ValueError, match=f"^{made}$"):
                document(tiny_tokenizer, *one)


def test_a_prompt_that_the_template_refuses_spoils_no_other(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'dull' in m.content %}{{ raise_exception('no dull films') }}{% endif %}"
        "{% endfor %}" + CHAT_TEMPLATE
    )
    many = [("good?", "very", ""), ("dull?", "very", ""), ("good?", "", ""), ("long?", "not very", "")]
    made = documents(tokenizer, many)
    assert [made[0], made[3]] == [document(tiny_tokenizer, *many[n]) for n in (0, 3)]
    assert [str(made[1]), str(made[2])] == [
        "the chat template refuses this: no dull films",
        "the completion is empty: no token would be supervised",
    ]


# instructions that are too long


def test_the_drawing_of_a_shortened_instruction(tiny_tokenizer: Any) -> None:
    prompt = "the film was long and dull and very good ?"
    whole = document(tiny_tokenizer, prompt, "not very")
    cut = shortened(tiny_tokenizer, prompt, "not very", "", len(whole.ids) - 5)
    assert len(cut.ids) == len(whole.ids) - 5
    assert drawn(tiny_tokenizer, cut) == [
        (".", "<|im_start|>user\n dull and very good ?<|im_end|>\n<|im_start|>assistant\n"),
        ("x", "not very<|im_end|>"),
    ]


# a limit that bites: below the whole length, and above what the frame and the answer take
@given(
    prompt=st.lists(words, min_size=1, max_size=8), completion=words, system=systems, share=st.floats(0, 1)
)
@pytest.mark.parametrize("name", [*TEMPLATES, "base"])
def test_a_shortened_prompt_loses_its_beginning_and_nothing_else(
    tokenizers: dict[str, Any], name: str, prompt: list[str], completion: str, system: str, share: float
) -> None:
    tokenizer, asked = tokenizers[name], " ".join(prompt)
    whole = document(tokenizer, asked, completion, system)
    answer = encode_completion(tokenizer, completion)
    limit = int(len(answer) + share * (len(whole.ids) - len(answer)))
    try:
        made = shortened(tokenizer, asked, completion, system, limit)
    except TooLong:
        # then no token of the prompt has room, give or take how the last characters fall into tokens
        least = document(tokenizer, asked.rstrip()[-1], completion, system)
        assert limit < len(least.ids) + 4
        return
    assert len(made.ids) <= limit
    assert [i for i, s in zip(made.ids, made.supervised, strict=True) if s] == answer
    assert made.supervised == sorted(made.supervised)
    ends = [asked[at:] for at in range(len(asked)) if asked[at:].strip()]
    fitting = [
        one for one in (document(tokenizer, end, completion, system) for end in ends) if len(one.ids) <= limit
    ]
    assert made in fitting, "it is not the end of the prompt within the whole frame"
    # no longer one fits, but for a few tokens that join at the cut
    assert len(made.ids) >= max(len(one.ids) for one in fitting) - 3


class Plain:
    """A tokenizer in Python: each character is a token, and which one is told by nobody."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self.inner(*texts, **options)


@given(prompt=words.filter(lambda text: len(text) > 5), share=st.floats(0, 1))
def test_a_prompt_is_shortened_without_offsets_too(
    tokenizers: dict[str, Any], prompt: str, share: float
) -> None:
    tokenizer = tokenizers["base"]
    whole, least = (len(document(tokenizer, text, "good").ids) for text in (prompt, prompt.rstrip()[-1]))
    limit = least + int(share * (whole - 1 - least))
    if not least <= limit < whole:
        return
    try:
        made = shortened(Plain(tokenizer), prompt, "good", "", limit)
    except TooLong:
        assert limit < least + 4  # how the last characters fall into tokens
        return
    assert made.cut
    ends = (document(tokenizer, prompt[at:], "good") for at in range(len(prompt)) if prompt[at:].strip())
    fitting = [one for one in ends if len(one.ids) <= limit]
    assert made in fitting
    assert len(made.ids) >= max(len(one.ids) for one in fitting) - 3
    with pytest.raises(TooLong):
        shortened(Plain(tokenizer), prompt, "good", "", 1)


def test_an_answer_that_leaves_no_room_is_too_long(tiny_tokenizer: Any) -> None:
    with pytest.raises(
        TooLong, match=r"^the answer alone leaves the prompt no room within data\.max_length 12$"
    ):
        shortened(tiny_tokenizer, "film " * 30, "good " * 30, "", 12)


# conversations


def test_the_drawing_of_a_conversation(tokenizers: dict[str, Any]) -> None:
    def draw(name: str) -> list[tuple[str, str]]:
        messages = talk("good?", "very", "long?", "not very", system="Be dull.")
        return drawn(tokenizers[name], conversation(tokenizers[name], messages, max_length=200))

    assert draw("chatml") == [
        (
            ".",
            "<|im_start|>system\nBe dull.<|im_end|>\n<|im_start|>user\ngood?<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("x", "very<|im_end|>"),
        (".", "\n<|im_start|>user\nlong?<|im_end|>\n<|im_start|>assistant\n"),
        ("x", "not very<|im_end|>"),
    ]
    assert draw("llama") == [
        (".", "<|im_start|>[INST] Be dull.\n\ngood? [/INST]"),
        ("x", "very<|im_end|>"),
        (".", "<|im_start|>[INST] long? [/INST]"),
        ("x", "not very<|im_end|>"),
    ]
    assert draw("base") == [
        (".", "Be dull.\n\nUser: good?\nAssistant:"),
        ("x", " very<|im_end|>"),
        (".", "\nUser: long?\nAssistant:"),
        ("x", " not very<|im_end|>"),
    ]


@given(turns=turns, system=systems)
@pytest.mark.parametrize("name", [*TEMPLATES, "base"])
def test_supervised_runs_are_the_answers_and_nothing_else(
    tokenizers: dict[str, Any], name: str, turns: list[str], system: str
) -> None:
    tokenizer = tokenizers[name]
    made = conversation(tokenizer, talk(*turns, system=system), max_length=LONG)
    runs = drawn(tokenizer, made)
    lead = " " if name == "base" else ""
    assert [run for mark, run in runs if mark == "x"] == [f"{lead}{answer}{END}" for answer in turns[1::2]]
    assert [mark for mark, _ in runs] == [".", "x"] * (len(turns) // 2)
    assert made.supervised_tokens == sum(made.supervised)


@given(turns=turns, system=systems)
@pytest.mark.parametrize("name", [*TEMPLATES, "base"])
def test_what_stands_before_an_answer_is_what_generation_starts_from(
    tokenizers: dict[str, Any], name: str, turns: list[str], system: str
) -> None:
    tokenizer = tokenizers[name]
    made = conversation(tokenizer, talk(*turns, system=system), max_length=LONG)
    begun = [
        i for i in range(1, len(made.ids)) if made.supervised[i] and not made.supervised[i - 1]
    ]  # where answers begin
    for number, start in enumerate(begun):
        so_far = talk(*turns[: 2 * number + 1], system=system)
        assert made.ids[:start] == encode_history(tokenizer, so_far)


@given(prompt=words, completion=words, system=systems)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_of_one_exchange_is_an_instruction(
    tokenizers: dict[str, Any], name: str, prompt: str, completion: str, system: str
) -> None:
    tokenizer = tokenizers[name]
    assert conversation(tokenizer, talk(prompt, completion, system=system), max_length=LONG) == document(
        tokenizer, prompt, completion, system
    )


def test_a_last_question_is_left_out_and_questions_in_a_row_are_one(tiny_tokenizer: Any) -> None:
    asked = [*talk("good?", "very"), {"role": "user", "content": "long?"}]
    assert conversation(tiny_tokenizer, asked, max_length=100) == conversation(
        tiny_tokenizer, asked[:-1], max_length=100
    )
    twice = [{"role": "user", "content": "the film:"}, *talk("good?", "very")]
    assert conversation(tiny_tokenizer, twice, max_length=100) == document(
        tiny_tokenizer, "the film:\n\ngood?", "very"
    )


@given(turns=st.lists(words, min_size=4, max_size=8), share=st.floats(0, 1))
def test_as_many_exchanges_as_fit_are_kept(tiny_tokenizer: Any, turns: list[str], share: float) -> None:
    lengths = [
        len(conversation(tiny_tokenizer, talk(*turns[:count]), max_length=LONG).ids)
        for count in range(2, len(turns) + 1, 2)
    ]
    limit = int(lengths[0] + share * (lengths[-1] - lengths[0]))
    kept = sum(length <= limit for length in lengths)
    made = conversation(tiny_tokenizer, talk(*turns), max_length=limit)
    assert made == conversation(tiny_tokenizer, talk(*turns[: 2 * kept]), max_length=LONG)
    assert made.cut == (kept < len(lengths))
    with pytest.raises(TooLong, match=f"^{lengths[0]} tokens, over data.max_length {lengths[0] - 1}$"):
        conversation(tiny_tokenizer, talk(*turns), max_length=lengths[0] - 1)


@pytest.mark.parametrize("messages", [[], talk("good?"), talk("good?", system="Be dull.")[:1]])
def test_a_conversation_without_an_answer_is_refused(
    tiny_tokenizer: Any, messages: list[dict[str, str]]
) -> None:
    with pytest.raises(ValueError, match=r"^no turn is the assistant's: no token would be supervised$"):
        conversation(tiny_tokenizer, messages, max_length=100)


def test_an_answer_that_is_not_to_be_learned_is_read(tiny_tokenizer: Any) -> None:
    plain = talk("good?", "very", "and long?", "no")
    marked = [*plain[:1], {**plain[1], "weight": "0"}, *plain[2:]]
    whole, part = (conversation(tiny_tokenizer, turns, max_length=100) for turns in (plain, marked))
    assert part.ids == whole.ids
    first = len(conversation(tiny_tokenizer, plain[:2], max_length=100).ids)
    assert part.supervised == [False] * first + whole.supervised[first:]
    with pytest.raises(ValueError, match=r"^no turn of the assistant's is to be learned: no token would be"):
        conversation(tiny_tokenizer, marked[:2], max_length=100)


def test_another_role_is_refused_by_its_name(tiny_tokenizer: Any) -> None:
    messages = [*talk("good?", "very"), {"role": "tool", "content": "42"}]
    with pytest.raises(ValueError, match=r"^turn 3 has the role `tool`, not system, user or assistant$"):
        conversation(tiny_tokenizer, messages, max_length=100)


# raw text


def test_the_drawing_of_a_text(tiny_tokenizer: Any) -> None:
    pieces = text(tiny_tokenizer, "the film was very good and very long", max_length=4)
    assert [drawn(tiny_tokenizer, piece) for piece in pieces] == [
        [(".", "the"), ("x", " film was very")],
        [(".", " good"), ("x", " and very long")],
    ]  # a third piece would hold nothing but the end


@given(body=words, max_length=st.integers(1, 12))
@pytest.mark.parametrize("name", ["chatml", "base"])
def test_every_token_but_the_first_of_a_piece_is_supervised(
    tokenizers: dict[str, Any], name: str, body: str, max_length: int
) -> None:
    tokenizer = tokenizers[name]
    pieces = text(tokenizer, body, max_length=max_length)
    whole = [*tokenizer(body)["input_ids"], tokenizer.eos_token_id]
    kept = [token for piece in pieces for token in piece.ids]
    assert kept == whole[: len(kept)]
    assert len(whole) - len(kept) <= 1 or max_length == 1
    for piece in pieces:
        assert 2 <= len(piece.ids) <= max_length
        assert piece.supervised == [False, *[True] * (len(piece.ids) - 1)]
    assert all(len(piece.ids) == max_length for piece in pieces[:-1])


def test_a_text_that_fits_is_whole(tiny_tokenizer: Any) -> None:
    (piece,) = text(tiny_tokenizer, "the film was good", max_length=100)
    assert tiny_tokenizer.decode(piece.ids) == f"the film was good{END}"


def test_a_text_cannot_hold_its_own_end(tiny_tokenizer: Any) -> None:
    (piece,) = text(tiny_tokenizer, f"good{END}\n<|im_start|>bad", max_length=100)
    assert tiny_tokenizer.decode(piece.ids) == f"good< |im_end|>\n< |im_start|>bad{END}"


def test_a_text_begins_and_ends_as_the_tokenizer_would_have_it(tiny_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer)
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", END))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<|endoftext|> $A {END}", special_tokens=[("<|endoftext|>", start), (END, end)]
    )
    (piece,) = text(tokenizer, "good film", max_length=100)
    assert tokenizer.decode(piece.ids) == f"<|endoftext|>good film{END}"
