"""From an instruction's text to tokens, in the words of the model's own chat template.

In:  a tokenizer, and a prompt with its completion or the turns of a conversation.
Out: token ids of what is read (not supervised) and of each answer with its end-of-turn token (supervised).

    encode_prompt(tok, "Say hi.")    # <|im_start|>user\\nSay hi.<|im_end|>\\n<|im_start|>assistant\\n
    encode_completion(tok, "Hi.")    # Hi.<|im_end|>

What is read and what is answered are tokenized apart: generation starts from exactly the tokens read, so training
must as well. In a conversation the same holds at every answer (`encode_exchanges`, `encode_history`).

A system text goes where the chat template puts it. A template that refuses or ignores a system role, or moves it
behind an earlier answer, gets it at the head of the first question instead.

A model without a chat template gets the prompt, a newline, the completion and the end-of-sequence token, and for a
conversation lines that name the speaker, each answer closed by that token (a system text and a blank line go first):

    User: Hi.
    Assistant: Hello!</s>
    User: Bye.
    Assistant: See you.</s>

The encoder of an encoder–decoder reads the same, without the newline and closed by the end-of-sequence token, unless
there is a chat template to say how it ends.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ift.errors import IftError

Tokenizer = Any  # transformers' tokenizers share no public base that is typed
Message = Mapping[str, str]  # `role` and `content`

_MARKER = re.compile(r"<[|\uff5c].*[|\uff5c]>", re.DOTALL)  # <|user|>; DeepSeek writes a wider bar
_BRACKETED = re.compile(r"<.*>|\[.*\]|\{.*\}", re.DOTALL)
_PLAIN = re.compile(r"[^<>{}\[\]|/#\\]+")  # a text in which no chat template looks for anything
_MARK = "\u2402QUESTION\u2403"  # stands for a prompt; no text has it
_TRIED = 4  # prompts that are rendered to see that a frame fits
_REWRITTEN = (
    "the chat template words a turn otherwise once another follows it (as those that drop earlier reasoning do): "
    "what is read before each answer is not in the conversation as a whole"
)
_Controls = tuple[tuple[str, ...], tuple[str, ...]]
_KNOWN: WeakKeyDictionary[Tokenizer, tuple[object, _Controls]] = WeakKeyDictionary()


def neutralise(tokenizer: Tokenizer, text: str, *, answer: bool = False) -> str:
    """`text` with the tokenizer's control tokens broken up: `<|im_end|>` becomes `< |im_end|>`.

    Text of a data set or a user must not be able to end a turn or to begin one. An `answer` may keep tokens such as
    `<think>`: a data set may well teach them.
    """
    return _break(_pattern(control_tokens(tokenizer, answer=answer)), text)


def _break(pattern: "_Pattern | None", text: str) -> str:
    if pattern is None or not any(first in text for first in pattern.firsts):
        return text
    return pattern.tokens.sub(lambda m: f"{m[0][0]} {m[0][1:]}" if len(m[0]) > 1 else " ", text)


def control_tokens(tokenizer: Tokenizer, *, answer: bool = False) -> tuple[str, ...]:
    """Every token that means something to the model beyond its text.

    These are the tokens that the tokenizer calls special, and those added to its vocabulary that are written
    `<|like this|>`: they begin and end turns. Outside an `answer`, added tokens in brackets that the chat template
    names count as well: `<think>`, `<tool_call>`. Other added tokens are text: runs of spaces, `<table>`, a field's
    own words.
    """
    key = (tuple(tokenizer.all_special_tokens), str(tokenizer.chat_template))
    known = _KNOWN.get(tokenizer)
    if known is None or known[0] != key:  # some tokenizers have thousands of added tokens
        known = _KNOWN[tokenizer] = (key, _find_controls(tokenizer, *key))
    turns, prompts = known[1]
    return turns if answer else prompts


def _find_controls(tokenizer: Tokenizer, special: Sequence[str], template: str) -> _Controls:
    """What counts in answers, and what counts in all other text."""
    added = list(tokenizer.added_tokens_decoder.values())
    turns = {*special, *(t.content for t in added if t.special or _MARKER.fullmatch(t.content))}
    named = {t.content for t in added if _BRACKETED.fullmatch(t.content) and t.content in template}
    return tuple(sorted(turns)), tuple(sorted(turns | named))


class _Pattern(NamedTuple):
    """Any of some tokens, and the characters that they begin with: most texts hold none of these."""

    tokens: re.Pattern[str]
    firsts: frozenset[str]


@lru_cache(maxsize=32)
def _pattern(tokens: tuple[str, ...]) -> _Pattern | None:
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    if not longest_first:
        return None
    firsts = frozenset(token[0] for token in longest_first)
    return _Pattern(re.compile("|".join(map(re.escape, longest_first))), firsts)


def prompt_text(tokenizer: Tokenizer, prompt: str, system: str = "") -> str:
    """What the model reads before it answers `prompt`."""
    return _prompt_text(tokenizer, neutralise(tokenizer, prompt), neutralise(tokenizer, system))


def _prompt_text(tokenizer: Tokenizer, prompt: str, system: str) -> str:
    if tokenizer.chat_template:
        return _templated(tokenizer, system, [{"role": "user", "content": prompt}])
    return f"{_headed(system, prompt)}\n"


def _prompt_texts(tokenizer: Tokenizer, asked: Sequence[tuple[str, str]]) -> list[str]:
    """`_prompt_text` of each prompt with its system text.

    Of many, most are put into the frame that the chat template has around each of the first: rendering it anew takes
    a quarter as long as the tokens do. Prompts with signs that a template may look for are rendered one by one.
    """
    if not tokenizer.chat_template or len(asked) <= _TRIED:
        return [_prompt_text(tokenizer, prompt, system) for prompt, system in asked]
    plain: dict[str, list[str]] = {}
    for prompt, system in asked:
        if _PLAIN.fullmatch(prompt) and prompt == prompt.strip():
            plain.setdefault(system, []).append(prompt)
    frames = {system: _frame(tokenizer, system, prompts) for system, prompts in plain.items()}
    known = {prompt for prompts in plain.values() for prompt in prompts}
    texts = []
    for prompt, system in asked:
        frame = frames.get(system) if prompt in known else None
        texts.append(frame[0] + prompt + frame[1] if frame else _prompt_text(tokenizer, prompt, system))
    return texts


def _frame(tokenizer: Tokenizer, system: str, prompts: Sequence[str]) -> tuple[str, str] | None:
    """What the chat template puts before and behind a prompt, if it is the same for some of these."""
    before, _, behind = _prompt_text(tokenizer, _MARK, system).partition(_MARK)
    tried = [*prompts[:_TRIED], max(prompts, key=len), min(prompts, key=len)]
    same = all(_prompt_text(tokenizer, prompt, system) == before + prompt + behind for prompt in tried)
    return (before, behind) if same else None


def encode_prompt(tokenizer: Tokenizer, prompt: str, system: str = "", *, encoder: bool = False) -> list[int]:
    """Token ids of what the model reads before it answers; `encoder`: of what its encoder reads."""
    asked = [(neutralise(tokenizer, prompt), neutralise(tokenizer, system))]
    return _encode_prompts(tokenizer, asked, encoder)[0]


def _encode_prompts(tokenizer: Tokenizer, asked: Sequence[tuple[str, str]], encoder: bool) -> list[list[int]]:
    """Token ids of prompts, each with its system text; both neutralised."""
    if not encoder or tokenizer.chat_template:
        return _encode_starts(tokenizer, _prompt_texts(tokenizer, asked))
    starts = _encode_starts(tokenizer, [_headed(system, prompt) for prompt, system in asked])
    return [close_source(tokenizer, ids) for ids in starts]


def close_source(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """What an encoder reads, with its end."""
    return ids if tokenizer.chat_template else [*ids, end_of_sequence(tokenizer)]


def encode_completion(tokenizer: Tokenizer, completion: str) -> list[int]:
    """Token ids of an answer, the end-of-turn token last."""
    return [*_encode(tokenizer, neutralise(tokenizer, completion, answer=True)), end_of_turn(tokenizer)]


def encode_instructions(
    tokenizer: Tokenizer, instructions: Sequence[tuple[str, str, str]], *, encoder: bool = False
) -> list[tuple[list[int], list[int]]]:
    """`encode_prompt` and `encode_completion` of many instructions at once: each a prompt, a completion, a system text.

    Equal to them one by one, and several times as fast: what hangs on the tokenizer alone is found out once.
    """
    if not instructions:
        return []
    prompts = _pattern(control_tokens(tokenizer))
    answers = _pattern(control_tokens(tokenizer, answer=True))
    end = end_of_turn(tokenizer)
    systems = {system: _break(prompts, system) for _, _, system in instructions}
    heads = [(_break(prompts, prompt), systems[system]) for prompt, _, system in instructions]
    tails = [_break(answers, completion) for _, completion, _ in instructions]
    encoded = encode_many(tokenizer, tails, special=False)
    return [
        (head, [*tail, end])
        for head, tail in zip(_encode_prompts(tokenizer, heads, encoder), encoded, strict=True)
    ]


def encode_many(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Token ids of many texts; `special` adds what the tokenizer puts around a text."""
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in plain Python
        return [tokenizer(text, add_special_tokens=special)["input_ids"] for text in texts]
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)
    return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=special)]


def encode_history(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of what the model reads before it answers the last of `messages`, a user's.

    Raises `ValueError` as `encode_exchanges` does.
    """
    return [token for read, answer in encode_exchanges(tokenizer, messages) for token in (*read, *answer)]


def encode_exchanges(
    tokenizer: Tokenizer, messages: Sequence[Message]
) -> Iterator[tuple[list[int], list[int]]]:
    """For every answer of a conversation, the tokens read since the answer before it, and those of the answer.

        read    <|im_start|> user \\n Hi . <|im_end|> \\n <|im_start|> assistant \\n
        answer  Hello ! <|im_end|>
        read    \\n <|im_start|> user \\n Bye . <|im_end|> \\n <|im_start|> assistant \\n
        answer  See you . <|im_end|>

    A last question that has no answer comes with an empty one. An answer stands in what follows exactly as it was
    given, its end-of-turn token right behind it, whatever white space the template would put around it.

    Raises `ValueError` for turns that make no conversation, and where the template rewrites earlier turns.
    """
    system, pairs = exchanges(messages)
    system, end = neutralise(tokenizer, system), end_of_turn(tokenizer)
    history: list[dict[str, str]] = []
    before = ""
    for question, answer in pairs:
        history.append({"role": "user", "content": neutralise(tokenizer, question)})
        if tokenizer.chat_template:
            text, lead = _templated(tokenizer, system, history), ""
        else:
            text, lead = _transcript(system, history), " "  # tokenizers join a space to the word behind it
        if before:
            mark = tokenizer.convert_ids_to_tokens(end)
            read = _encode_behind(tokenizer, end, mark, _since(before, history, text, mark))
        else:
            read = _encode_start(tokenizer, text)
        before = text
        if answer is None:
            yield read, []
            return
        history.append({"role": "assistant", "content": neutralise(tokenizer, answer, answer=True)})
        yield read, [*_encode(tokenizer, lead + history[-1]["content"]), end]


def exchanges(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str | None]]]:
    """The system text, and each question with its answer: None where the last has none.

    System messages come first, and are joined; so are a user's messages in a row. Raises `ValueError` for any other
    order, for another role, and for a question or an answer without text.
    """
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content") or ""
        last = turns[-1][0] if turns else None
        if role == "system":
            if turns:
                raise ValueError(f"turn {number} is a system message, which can only come first")
            system += [content] if content.strip() else []
        elif not role:
            raise ValueError(f"turn {number} has no role")
        elif role not in ("user", "assistant"):
            raise ValueError(f"turn {number} has the role `{role}`, not system, user or assistant")
        elif not content.strip():
            raise ValueError(f"turn {number}, the {role}'s, is empty")
        elif role == "assistant" and last != "user":
            raise ValueError(
                f"turn {number} is the assistant's, like the one before it"
                if last
                else "the first turn is the assistant's: it answers nothing"
            )
        elif role == last:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{content}")
        else:
            turns.append((role, content))
    texts = [content for _, content in turns]
    answers = [*texts[1::2], None] if len(texts) % 2 else texts[1::2]
    return "\n\n".join(system), list(zip(texts[::2], answers, strict=True))


def begun_otherwise(tokenizer: Tokenizer) -> str | None:
    """Where the chat template has an answer begin, if it is not right behind a prompt; None where it is.

    Training has every answer stand right behind a prompt, which is where generation begins. Templates of models that
    reason open a thought there, or have an empty one before an answer: what is trained would then be inside of it, or
    without it.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
    prompt = _render(tokenizer, turns[:1])
    try:
        whole: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except ValueError:
        return None
    before = whole.partition("ANSWER")[0]
    if before.rstrip() == prompt.rstrip():
        return None
    at = next(
        (i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b),
        min(len(before), len(prompt)),
    )
    return (
        f"a prompt ends with {prompt[at:]!r}, and an answer in a conversation stands behind {before[at:]!r}"
    )


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token that ends an assistant's turn in the chat template, else the end-of-sequence token.

    Raises `IftError` where the tokenizer has neither: such a model would never learn to stop.
    """
    if tokenizer.chat_template:
        pattern = _pattern(control_tokens(tokenizer, answer=True))
        match = pattern.tokens.search(_after_answer(tokenizer)) if pattern else None
        if match:
            return int(tokenizer.convert_tokens_to_ids(match[0]))
    return end_of_sequence(tokenizer)


def end_of_sequence(tokenizer: Tokenizer) -> int:
    """The token that ends a document. Raises `IftError` where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise IftError(
            "the tokenizer has no end-of-sequence token",
            wanted="an eos_token",
            hint="set one in tokenizer_config.json",
        )
    return int(tokenizer.eos_token_id)


def _after_answer(tokenizer: Tokenizer) -> str:
    """What the chat template puts behind an assistant's answer."""
    answer = "ANSWER"
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}], tokenize=False
    )
    return text.rpartition(answer)[2]


def _templated(tokenizer: Tokenizer, system: str, history: Sequence[dict[str, str]]) -> str:
    """`history`, which ends with a question, in the chat template's words, up to where the answer begins."""
    if not system.strip():
        return _render(tokenizer, history)
    if _takes_system(tokenizer):
        return _render(tokenizer, [{"role": "system", "content": system}, *history])
    first, *others = history
    return _render(tokenizer, [{**first, "content": _headed(system, first["content"])}, *others])


def _takes_system(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a place for a system message, and keeps it there when turns follow."""
    head = [{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": "QUESTION"}]
    more = [{"role": "assistant", "content": "ANSWER"}, {"role": "user", "content": "MORE"}]
    try:
        one, two = _render(tokenizer, head), _render(tokenizer, [*head, *more])
    except ValueError:
        return False
    return "SYSTEM" in one and "SYSTEM" in two.partition("ANSWER")[0]


def _render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses this: {error}") from None
    return text


def _transcript(system: str, history: Sequence[dict[str, str]]) -> str:
    """`history` as lines that name the speaker."""
    lines = [f"{message['role'].capitalize()}: {message['content']}" for message in history]
    return _headed(system, "\n".join([*lines, "Assistant:"]))


def _headed(system: str, text: str) -> str:
    return f"{system}\n\n{text}" if system.strip() else text


def _since(before: str, history: Sequence[dict[str, str]], text: str, end: str) -> str:
    """What `text` puts behind its last answer and that answer's `end`; `before` is the text that led to the answer."""
    if not text.startswith(before):
        raise ValueError(_REWRITTEN)
    answer, question = (message["content"] for message in history[-2:])
    for shown in (answer, answer.strip()):  # some templates strip what they are given
        lead, found, tail = text[len(before) :].partition(shown)
        if found and not lead.strip():
            break
    else:
        raise ValueError(_REWRITTEN)
    between, found, after = tail.partition(end)
    if found and not between.strip():
        return after
    if (
        found and question.strip() not in between
    ):  # the turn's end is there, but more than the answer stands before it
        raise ValueError(_REWRITTEN)
    return tail


def _encode_start(tokenizer: Tokenizer, text: str) -> list[int]:
    """`text` at the start of a document: a chat template writes its own first token, else the tokenizer does."""
    return _encode_starts(tokenizer, [text])[0]


def _encode_starts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    encoded = encode_many(tokenizer, texts, special=not tokenizer.chat_template)
    if tokenizer.chat_template:
        return encoded
    # some tokenizers close every text; the answer is still to come
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def _encode_behind(tokenizer: Tokenizer, end: int, mark: str, text: str) -> list[int]:
    """`text` behind the token `end`, written `mark`: tokenized with it, as some swallow the white space behind them."""
    ids = _encode(tokenizer, mark + text)
    return ids[1:] if ids[:1] == [end] else _encode(tokenizer, text)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
