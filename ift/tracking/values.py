"""Values as MLflow takes them: texts of bounded length, keys of few characters, numbers.

In:  nested mappings of anything.
Out: flat mappings of texts, or of numbers.

    flatten({"train": {"epochs": 1}})       # {"train.epochs": "1"}
    numbers({"losses": {"trec": 0.5}})      # {"losses/trec": 0.5}
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# MLflow's limits for a key, a param's and a tag's value.
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 5000


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys, every value as text: {"train": {"epochs": 1}} is {"train.epochs": "1"}."""
    flat: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                item if isinstance(item, str) else json.dumps(item, default=str, ensure_ascii=False)
            )
    return flat


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in `values`, nested ones under keys joined with a slash; NaN and infinities stay."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{key}/")
        elif (number := _float(value)) is not None:
            found[f"{prefix}{key}"] = number
    return found


def whole(value: Any, times: int = 1) -> int | None:
    """`times` so many of `value` as a whole number; None where it is no finite number."""
    number = _float(value)
    return int(number * times) if number is not None and math.isfinite(number) else None


def key_of(text: str) -> str:
    """`text` as a key that MLflow takes, one that is a clean relative path."""
    clean = re.sub(r"[^\w./ -]", "_", text, flags=re.ASCII)
    return "/".join(part for part in clean.split("/") if part.strip(".")).strip()[:KEY_LENGTH] or "_"


def _float(value: Any) -> float | None:
    if isinstance(value, str | bool | None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
