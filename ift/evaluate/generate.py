"""What a model answers: greedy generation in batches.

In:  prompts as token ids, the longest answer, the tokens that end one.
Out: the answers as token ids, without the token that ended them.

    generate(model, [[9, 4]], max_new_tokens=8, stop=[2])    # [[7, 7]]
"""

from collections.abc import Sequence
from typing import Any

import torch

from ift.evaluate import encoder, prefix


def generate(
    model: Any, prompts: Sequence[list[int]], *, max_new_tokens: int, stop: Sequence[int]
) -> list[list[int]]:
    """Greedy answers to all `prompts` in one batch.

    An answer that has ended leaves the batch, so that a long one does not make the others costly.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))  # numbers of the answers that have not ended
    with torch.inference_mode():
        writing: _Decoding | _GoingOn = (
            _Decoding(model, prompts)
            if model.config.is_encoder_decoder
            else _GoingOn(model, prompts, max_new_tokens)
        )
        for _ in range(max_new_tokens):
            written = writing.step()
            rows = [row for row, token in enumerate(written) if token not in stop]
            for row in rows:
                answers[going[row]].append(written[row])
            if not rows:
                break
            if len(rows) < len(going):  # what has ended costs nothing any more
                writing.keep(rows)
                going = [going[row] for row in rows]
    return answers


class _GoingOn:
    """A causal model goes on behind its prompts, which are padded on the left and masked there."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
        self.model = model
        longest = max(map(len, prompts)) + max_new_tokens
        shared, self.past = prefix.cached(model, prompts, longest=longest)
        width = max(map(len, prompts)) - shared
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.ones(len(prompts), shared + width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            padding = shared + width - len(prompt)
            ids[row, padding:] = torch.tensor(prompt[shared:])
            mask[row, shared : shared + padding] = 0
        device = next(model.parameters()).device
        self.ids, self.mask = ids.to(device), mask.to(device)

    def step(self) -> list[int]:
        """Each row's next token."""
        output = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(-1) - 1).clamp(min=0)[:, -self.ids.shape[1] :],
            past_key_values=self.past,
            use_cache=True,
            logits_to_keep=1,
        )
        self.past, self.ids = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return [int(token) for token in self.ids[:, 0].tolist()]

    def keep(self, rows: Sequence[int]) -> None:
        """Leave all other rows."""
        kept = torch.tensor(rows)  # on the CPU, from where it picks on any device: layers may lie on several
        self.past.batch_select_indices(kept)
        self.ids, self.mask = self.ids[kept], self.mask[kept]


class _Decoding:
    """An encoder–decoder has read its prompts, and writes from the decoder's first token on."""

    def __init__(self, model: Any, prompts: Sequence[list[int]]) -> None:
        self.model = model
        self.source = encoder.encoded(model, prompts)
        self.past: Any = None
        self.ids = encoder.first_tokens(model, len(prompts))

    def step(self) -> list[int]:
        """Each row's next token."""
        output = encoder.decoded(self.model, self.source, self.ids, self.past, cache=True)
        self.past, self.ids = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        return [int(token) for token in self.ids[:, 0].tolist()]

    def keep(self, rows: Sequence[int]) -> None:
        """Leave all other rows."""
        kept = torch.tensor(rows)  # on the CPU, from where it picks on any device: layers may lie on several
        self.past.batch_select_indices(kept)
        self.source, self.ids = self.source.rows(rows), self.ids[kept]
