"""What vLLM is asked, and what is made of its answers. It needs a GPU: a stand-in with its signatures answers here."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from ift.errors import IftError
from ift.evaluate import evaluator, with_vllm
from ift.evaluate.generate import generate
from ift.models.base import load_model

PROMPTS = [[5, 6, 7, 8], [5, 9], [5, 6, 7, 8, 20, 21, 22], [6]]


class SamplingParams:
    """Those of vLLM 0.33 that are used; a misspelt one is an error here too."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        max_tokens: int = 16,
        stop_token_ids: list[int] | None = None,
        ignore_eos: bool = False,
        detokenize: bool = True,
    ) -> None:
        assert temperature == 0.0
        assert not detokenize  # there is no tokenizer
        self.max_tokens, self.stop, self.ignore_eos = max_tokens, stop_token_ids or [], ignore_eos


class LLM:
    """Greedy, one prompt after the other. As in vLLM, the token that ends an answer is the last of its tokens."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        tensor_parallel_size: int,
        seed: int,
        skip_tokenizer_init: bool,
        enable_prefix_caching: bool,
    ) -> None:
        assert tensor_parallel_size > 0
        self.model = load_model(Path(model), dtype=dtype)

    def generate(self, prompts: list[Any], params: SamplingParams, *, use_tqdm: bool = True) -> list[Any]:
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._one(p["prompt_token_ids"], params))])
            for p in prompts
        ]

    def _one(self, prompt: list[int], params: SamplingParams) -> list[int]:
        written: list[int] = []
        while len(written) < params.max_tokens and not (written and written[-1] in params.stop):
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([prompt + written])).logits
            written.append(int(logits[0, -1].argmax()))
        return written


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__spec__ = SimpleNamespace(name="vllm")  # type: ignore[assignment]  # for find_spec
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_answers_are_those_of_generate_and_end_before_the_stop_token(vllm: None, tiny_model: Path) -> None:
    model, answer = load_model(tiny_model), with_vllm.engine(tiny_model, dtype="float32")
    whole = generate(model, PROMPTS, max_new_tokens=12, stop=[])
    assert answer(PROMPTS, max_new_tokens=12, stop=[]) == whole
    stop = sorted({whole[0][3], whole[1][0]})  # one answer ends in its middle, one before its first token
    cut = answer(PROMPTS, max_new_tokens=12, stop=stop)
    assert cut == generate(model, PROMPTS, max_new_tokens=12, stop=stop)
    assert cut[1] == []
    assert len(cut[0]) < 4


def test_it_is_asked_for_generations_a_thousand_at_once(vllm: None, tiny_model: Path) -> None:
    predictor = evaluator.Predictor(str(tiny_model), "float32", 1, gpus=1, engine="vllm")
    blank = {"suite": "probe", "name": "n", "kind": "generation", "metric": None, "system": "", "choices": []}
    items = [
        {
            **blank,
            "id": str(i),
            "prompt": "good film " * (i % 9),
            "check": {"max_words": 9},
            "max_new_tokens": 3,
        }
        for i in range(1500)
    ]
    groups = evaluator.batches(predictor.tokenizer, items, 100, vllm=True)
    assert [len(group) for group in groups] == [1024, 476]
    assert sorted(i for group in groups for i in group) == list(range(1500))
    few = [items[i] for i in groups[1][:4]]
    ordinary = evaluator.Predictor(str(tiny_model), "float32", 1, gpus=0)
    assert predictor.predict(few) == ordinary.predict(few)


def test_what_it_cannot_do_is_told_before_a_model_is_loaded(
    vllm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IftError, match=r"`evaluate.engine` is vllm, and there is no GPU"):
        with_vllm.check(gpus=0, encoder_decoder=False)
    with pytest.raises(IftError, match=r"`evaluate.engine` is vllm, and the model is an encoder–decoder"):
        with_vllm.check(gpus=1, encoder_decoder=True)
    with_vllm.check(gpus=1, encoder_decoder=False)
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(IftError, match=r"`evaluate.engine` is vllm, and vLLM is not installed"):
        with_vllm.check(gpus=1, encoder_decoder=False)
