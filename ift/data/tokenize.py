"""Instructions, conversations and raw text to tokens, with a mark on each token that is supervised.

In:  prompt and completion, or a conversation's turns, or a text.
Out: a `Document`: token ids, and for each whether the loss counts it (x) or it is only read (.).

An instruction: the completion and its end of turn.

    <|im_start|> user \\n Good ? <|im_end|> \\n <|im_start|> assistant \\n Yes . <|im_end|>
         .        .    .  .   .     .        .      .         .        .   x   x    x

A conversation: every answer and its end of turn.

    <|im_start|> user \\n Hi <|im_end|> \\n <|im_start|> assistant \\n Hello <|im_end|> \\n <|im_start|> user \\n …
         .        .    .  .     .        .      .         .        .    x       x      .      .        .    .

A text, cut into pieces: all but each piece's first token, which nothing stands before.

    It rained . | The roads | were wet . <|endoftext|>
    .    x    x    .    x       .   x  x      x

An encoder–decoder reads what is not supervised and writes what is, so its documents have one border: what is read, with
its end, then one answer. A conversation makes a document of each answer (`answers`), a text one of each piece, which is
read to its half (`halves`).

    Good ? </s> | Yes . </s>
     .   .  .     x   x  x
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ift.prompts.chat import (
    Message,
    Tokenizer,
    close_source,
    encode_exchanges,
    encode_instructions,
    end_of_sequence,
    neutralise,
)


@dataclass(frozen=True)
class Document:
    """Tokens that are read as one: `supervised[i]` says whether the loss counts `ids[i]`."""

    ids: list[int]
    supervised: list[bool]
    cut: bool = field(default=False, compare=False)  # some of its source did not fit, and is not in it

    @property
    def supervised_tokens(self) -> int:
        return sum(self.supervised)


class TooLong(ValueError):
    """Nothing is wrong with it but its length."""


def documents(
    tokenizer: Tokenizer, instructions: Sequence[tuple[str, str, str]], *, encoder: bool = False
) -> list[Document | ValueError]:
    """Instructions, each a prompt, a completion and a system text, as documents of any length.

    In place of one that cannot be trained on stands a `ValueError` with the reason. `encoder`: an encoder reads them.
    """
    found: list[Document | ValueError] = [
        ValueError("the completion is empty: no token would be supervised")
        if not completion.strip()
        else ValueError("the prompt is empty")
        for _, completion, _ in instructions
    ]
    good = [
        i for i, (prompt, completion, _) in enumerate(instructions) if prompt.strip() and completion.strip()
    ]
    try:
        encoded = encode_instructions(tokenizer, [instructions[i] for i in good], encoder=encoder)
    except ValueError as error:  # a chat template refuses one of them: which, is found one by one
        if len(instructions) == 1:
            return [error]
        return [documents(tokenizer, [one], encoder=encoder)[0] for one in instructions]
    for i, (head, tail) in zip(good, encoded, strict=True):
        if len(tail) < 2:
            found[i] = ValueError("the tokenizer has no token for the completion")
        else:
            found[i] = _answered(head, tail)
    return found


def _answered(read: list[int], answer: list[int]) -> Document:
    return Document(read + answer, [False] * len(read) + [True] * len(answer))


def shortened(
    tokenizer: Tokenizer,
    prompt: str,
    completion: str,
    system: str,
    max_length: int,
    *,
    encoder: bool = False,
) -> Document:
    """One instruction that is over `max_length`, its prompt cut from the left; the answer stays whole.

        <|im_start|> user \\n Review : … what a film . Good ? <|im_end|> \\n <|im_start|> assistant \\n Yes . <|im_end|>
                               └─ lost ┘

    The beginning of the turn stays where it is: only what the prompt says is cut, at a token's border. Raises `TooLong`
    where the answer and what stands around the prompt leave no room for any of it.
    """
    text = neutralise(tokenizer, prompt)

    def behind(start: int) -> Document | ValueError:
        [found] = documents(tokenizer, [(text[start:], completion, system)], encoder=encoder)
        return found

    found = _cut_at_tokens if getattr(tokenizer, "is_fast", False) else _cut_at_characters
    document = found(tokenizer, text, behind, max_length)
    if document is None:
        raise TooLong(f"the answer alone leaves the prompt no room within data.max_length {max_length:,}")
    return replace(document, cut=True)


_Behind = Callable[[int], Document | ValueError]  # the instruction with what its prompt says from there on


def _cut_at_tokens(tokenizer: Tokenizer, text: str, behind: _Behind, max_length: int) -> Document | None:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    at = 0
    while at < len(starts):
        found = behind(starts[at] if at else 0)
        over = len(found.ids) - max_length if isinstance(found, Document) else 1
        if over <= 0 and isinstance(found, Document):
            return found
        at += over  # a token less in the prompt is about one less in all: a few rounds do
    return None


def _cut_at_characters(_: Tokenizer, text: str, behind: _Behind, max_length: int) -> Document | None:
    """Where a tokenizer (one in Python) does not tell which characters a token is: the most that fit."""
    best: Document | None = None
    low, high = 0, len(text)  # too much is left from `low` on, nothing or little enough from `high`
    while high - low > 1:
        at = (low + high) // 2
        found = behind(at)
        if isinstance(found, Document) and len(found.ids) > max_length:
            low = at
        else:
            high, best = at, found if isinstance(found, Document) else best
    return best


def conversation(tokenizer: Tokenizer, messages: Sequence[Message], *, max_length: int) -> Document:
    """All of a conversation's answers in one document; `encode_exchanges` says what is read before each.

    A last question without an answer is left out. Where all of it is over `max_length`, as many exchanges as fit are
    kept from the first on. Raises `ValueError`, with the reason, for a conversation that cannot be trained on.
    """
    ids: list[int] = []
    supervised: list[bool] = []
    cut = False
    learned = _learned(messages)
    for read, answer in encode_exchanges(tokenizer, messages):
        if not answer:
            break
        if len(answer) < 2:
            raise ValueError("the tokenizer has no token for an answer")
        length = len(ids) + len(read) + len(answer)
        if length > max_length:
            if not ids:
                raise TooLong(too_long(length, max_length))
            cut = True
            break
        ids += read + answer
        supervised += [False] * len(read) + [next(learned)] * len(answer)
    if not any(supervised):
        raise ValueError(_nothing_learned(messages))
    return Document(ids, supervised, cut)


def _nothing_learned(messages: Sequence[Message]) -> str:
    answered = any(turn["role"] == "assistant" for turn in messages)
    why = "no turn of the assistant's is to be learned" if answered else "no turn is the assistant's"
    return f"{why}: no token would be supervised"


def _learned(messages: Sequence[Message]) -> Iterator[bool]:
    """Of each answer, whether it is to be learned."""
    return (turn.get("weight") != "0" for turn in messages if turn["role"] == "assistant")


def answers(tokenizer: Tokenizer, messages: Sequence[Message], *, max_length: int) -> list[Document]:
    """For an encoder–decoder: a document of each answer, in which all that stands before it is read.

    As many as fit `max_length`, from the first on. Raises `ValueError` as `conversation` does.
    """
    found: list[Document] = []
    history: list[int] = []
    for (read, answer), learned in zip(
        encode_exchanges(tokenizer, messages), _learned(messages), strict=False
    ):
        if not answer:
            break
        if len(answer) < 2:
            raise ValueError("the tokenizer has no token for an answer")
        history += read
        if not learned:
            history += answer
            continue
        document = _answered(close_source(tokenizer, history), answer)
        if len(document.ids) > max_length:
            if not found:
                raise TooLong(too_long(len(document.ids), max_length))
            found[-1] = replace(found[-1], cut=True)
            break
        found.append(document)
        history += answer
    if not found:
        raise ValueError(_nothing_learned(messages))
    return found


def text(tokenizer: Tokenizer, text: str, *, max_length: int) -> list[Document]:
    """A raw text in pieces of at most `max_length` tokens, the last closed by the end-of-sequence token.

    A last piece of one token is left out: nothing in it would be supervised. Raises `ValueError` for an empty text.
    """
    return [
        Document(piece, [False] + [True] * (len(piece) - 1)) for piece in _pieces(tokenizer, text, max_length)
    ]


def halves(tokenizer: Tokenizer, text: str, *, max_length: int) -> list[Document]:
    """The same for an encoder–decoder: of each piece it reads the first half, closed, and writes the second."""
    end = end_of_sequence(tokenizer)
    pieces = _pieces(tokenizer, text, max_length - 1)
    return [_answered([*piece[: len(piece) // 2], end], piece[len(piece) // 2 :]) for piece in pieces]


def _pieces(tokenizer: Tokenizer, text: str, size: int) -> list[list[int]]:
    """The tokens of a text and its end, at most `size` at a time; a last one alone is left out."""
    if not text.strip():
        raise ValueError("the text is empty")
    end = end_of_sequence(tokenizer)
    ids: list[int] = tokenizer(neutralise(tokenizer, text, answer=True))["input_ids"]
    ids = [*(ids[:-1] if ids and ids[-1] == end else ids), end]
    if len(ids) < 2:
        raise ValueError("the tokenizer has no token for the text")
    pieces = (ids[start : start + size] for start in range(0, len(ids), size))
    return [piece for piece in pieces if len(piece) > 1]


def too_long(length: int, max_length: int) -> str:
    """The reason for a document of `length` tokens."""
    return f"{length:,} tokens, over data.max_length {max_length:,}"
