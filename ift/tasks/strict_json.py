"""What is read as JSON at all: in files of rows, and in texts of theirs.

In:  a text.
Out: its value; a `ValueError` (or `RecursionError`) for JSON that can be read in more ways than one, or in none.

    DECODER.decode('{"a": NaN}')          # {"a": None}
    DECODER.decode('{"a": 1, "a": 2}')    # Unfit: the key `a` comes more than once in one object
"""

import json
import math
from collections import Counter
from typing import Any


class Unfit(ValueError):
    """JSON that can be read in more ways than one, or in none."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise Unfit(f"the key `{name}` comes more than once in one object")
    return value


def _constant(name: str) -> None:
    """Python and JavaScript programs write NaN for a missing value; infinity is no value that can be used."""
    if name != "NaN":
        raise Unfit(f"{name} is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Unfit(f"{digits} is too large for a number")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
