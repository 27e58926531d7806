"""Generation by vLLM on a GPU, where it is installed: the same answers to the same call as `generate`, sooner.

In:  a folder with a model; prompts as token ids, the longest answer, the tokens that end one.
Out: the answers as token ids, without the token that ended them.

    answer = engine(folder, dtype="bfloat16")
    answer([[9, 4]], max_new_tokens=8, stop=[2])    # [[7, 7]]

vLLM schedules by itself: whoever calls gives it many prompts at once. Its kernels sum in another order than those
of transformers, so where two tokens are all but equally likely, an answer may go another way.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ift.errors import IftError

Answer = Callable[..., list[list[int]]]
ROWS = 1024  # prompts that are given to it together


def check(*, gpus: int, encoder_decoder: bool) -> None:
    """Raise `IftError` where vLLM is not installed, or cannot serve what is asked."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise IftError(
            "`evaluate.engine` is vllm, and vLLM is not installed",
            wanted="vLLM, in the environment of every node that evaluates",
            hint="pip install vllm (docs/evaluation.md says beside what), or leave evaluate.engine out",
        )
    if not gpus:
        raise IftError(
            "`evaluate.engine` is vllm, and there is no GPU",
            wanted="a GPU for each copy of the model",
            hint="leave evaluate.engine out: transformers generates on CPUs",
        )
    if encoder_decoder:
        raise IftError(
            "`evaluate.engine` is vllm, and the model is an encoder–decoder",
            wanted="a causal language model",
            hint="leave evaluate.engine out",
        )


def engine(folder: Path, *, dtype: str, gpus: int = 1) -> Answer:
    """The model in `folder`, loaded by vLLM onto so many GPUs; returns a function that answers prompts."""
    from vllm import LLM, SamplingParams

    # the prompts are tokens already, and what they end with is ours to say: vLLM needs no tokenizer
    model = LLM(
        model=str(folder),
        dtype=dtype,
        tensor_parallel_size=gpus,
        seed=0,
        skip_tokenizer_init=True,
        enable_prefix_caching=True,
    )

    def answer(prompts: Sequence[list[int]], *, max_new_tokens: int, stop: Sequence[int]) -> list[list[int]]:
        greedy = SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            stop_token_ids=list(stop),
            ignore_eos=True,
            detokenize=False,
        )
        asked: list[Any] = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found = [output.outputs[0].token_ids for output in model.generate(asked, greedy, use_tqdm=False)]
        return [list(ids[:-1] if ids and ids[-1] in stop else ids) for ids in found]

    return answer
