"""What the prompts of a batch begin with, computed once: a system prompt may be half of a short question.

In:  prompts as token ids.
Out: how many tokens they share, and the model's cache of these, a row a prompt.

    cached(model, [[9, 4, 7], [9, 4, 8]], longest=8)    # 2, <cache of 9 4 and of 9 4>
"""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def reach(model: Any) -> float:
    """How far back every layer sees, in tokens: the shortest window, `inf` without one.

    0 where a layer is no such attention: what it keeps of a beginning takes no padding behind it.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if getattr(model, "_is_stateful", False) or "local" in getattr(config, "attention_layers", ()):
        return 0
    if config.model_type == "mpt":  # takes padding for distance
        return 0
    if kinds is not None and not set(kinds) <= {"full_attention", *_WINDOWS}:
        return 0
    named = [size for kind, size in _WINDOWS.items() if kinds is None or kind in kinds]
    windows = [window for name in named if (window := getattr(config, name, None))]
    return min(windows, default=math.inf)


def cached(model: Any, prompts: Sequence[list[int]], *, longest: int) -> tuple[int, Any]:
    """The length of the longest shared beginning and its cache; `(0, None)` where there is none.

    The last token of a prompt is never part of it: what it predicts is still to be computed. Where a sequence grows to
    `longest` tokens and some layer sees fewer of them, nothing is shared: a window counts the padding behind the
    beginning as well.
    """
    if longest > reach(model):
        return 0, None
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    if not shared:
        return 0, None
    ids = torch.tensor([shared], device=next(model.parameters()).device)
    with torch.inference_mode():
        cache = model.base_model(input_ids=ids, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(prompts))
    return len(shared), cache
