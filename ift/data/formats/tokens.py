"""Sentences as CoNLL writes them: a token and its tags a line, a blank line between sentences.

In:  lines; of the columns the first is the token and the last the tag.
Out: a `Row` for each sentence, a `Bad` for one whose lines differ in their number of columns.

    list(read_tokens(["Ada B-PER\\n", "wrote O\\n"]))
    # [Row(1, {"tokens": ["Ada", "wrote"], "tags": ["B-PER", "O"]})]
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from ift.data.formats.rows import MARK, QUOTED, Bad, Row


def read_tokens(lines: Iterable[str]) -> Iterator[Row | Bad]:
    """`token<TAB or space>…tag` a line; a blank line or -DOCSTART- ends a sentence."""
    tokens: list[str] = []
    tags: list[str] = []
    first, width, problem = 0, 0, ""
    for number, line in enumerate(chain(lines, [""]), start=1):
        if line.strip() and not line.startswith("-DOCSTART-"):
            first = first or number
            line = line.rstrip("\r\n").removeprefix(MARK)
            parts = line.split("\t") if "\t" in line else line.split(" ")
            parts = [part.strip(" ") for part in parts if part.strip(" ")]
            width = width or len(parts)  # prose, unlike tagged tokens, has lines of many widths
            if len(parts) < 2 or len(parts) != width:
                problem = (
                    problem or f"line {number} has {len(parts)} columns; wanted {max(2, width)}, token first"
                )
            tokens.append(parts[0] if parts else "")
            tags.append(parts[-1] if parts else "")
            continue
        if problem:
            yield Bad(first, problem, " ".join(tokens)[:QUOTED])
        elif tokens:
            yield Row(first, {"tokens": tokens, "tags": tags})
        tokens, tags, first, problem = [], [], 0, ""
