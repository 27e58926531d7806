"""What the encoder of an encoder–decoder makes of prompts, and what the decoder predicts behind it.

In:  prompts as token ids.
Out: their states, a row a prompt, padded on the right and masked there; logits of the decoder.

    source = encoded(model, [[9, 4, 1], [9, 1]])
    decoded(model, source, first_tokens(model, 2)).logits[:, -1]    # what two answers would begin with
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # transformers' mark on a label that is none


@dataclass(frozen=True)
class Source:
    """What a decoder looks at: `states` are `(rows, length, width)`, `mask` is `(rows, length)`, 0 on padding."""

    states: torch.Tensor
    mask: torch.Tensor

    def rows(self, numbers: Sequence[int]) -> "Source":
        """These rows, in this order; one may come several times."""
        kept = torch.tensor(numbers)
        return Source(self.states[kept], self.mask[kept])


def encoded(model: Any, prompts: Sequence[list[int]]) -> Source:
    """All `prompts` through the encoder at once."""
    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    mask = pad_sequence([torch.ones(len(prompt), dtype=torch.int64) for prompt in prompts], batch_first=True)
    device = next(model.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    return Source(model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state, mask)


def first_tokens(model: Any, rows: int) -> torch.Tensor:
    """`(rows, 1)`: the token that the decoder begins with."""
    nothing = torch.full((rows, 1), IGNORED, device=next(model.parameters()).device)
    begun: torch.Tensor = model.prepare_decoder_input_ids_from_labels(nothing)
    return begun


def decoded(model: Any, source: Source, ids: torch.Tensor, past: Any = None, *, cache: bool = False) -> Any:
    """The model's output for decoder tokens `ids`, a row a row of `source`."""
    from transformers.modeling_outputs import BaseModelOutput

    return model(
        encoder_outputs=BaseModelOutput(last_hidden_state=source.states),
        attention_mask=source.mask,
        decoder_input_ids=ids,
        past_key_values=past,
        use_cache=cache,
    )
