"""`ift chat`: talk to a model on the terminal.

In:  a run's folder, a version in MLflow or a model source; lines from stdin.
Out: the model's answers, word by word as they come. `/new` starts over, `/quit` or the end of input leaves.
"""

import sys
from pathlib import Path

from ift import fetching
from ift.evaluate.evaluator import ROOM, weights_of
from ift.models import base
from ift.prompts.chat import Tokenizer, close_source, encode_history, encode_prompt, end_of_turn, neutralise


def talk(source: str, *, uri: str, max_new_tokens: int, system: str = "") -> None:
    """Read questions, print answers (greedy). Raises `IftError` where there is no such model."""
    folder = fetching.fetch(source, uri=uri)
    import torch
    from transformers import TextStreamer

    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    dtype = "bfloat16" if gpu else "float32"
    model = base.load_model(folder, dtype=dtype, device=place(folder, gpu))
    tokenizer, encoder = base.load_tokenizer(folder), base.is_encoder_decoder(folder)
    interactive = sys.stdin.isatty()
    if interactive:
        print(f"{folder}\n/new starts over, /quit leaves\n")
    beginning = [{"role": "system", "content": system}] if system else []
    history = list(beginning)
    while True:
        try:
            question = input("you    > " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question == "/quit":
            return
        if question == "/new":
            history = list(beginning)
            continue
        if not question:
            continue
        history.append({"role": "user", "content": question})
        ids = torch.tensor([_read(tokenizer, history, encoder)], device=model.device)
        if interactive:
            print("model  > ", end="", flush=True)
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=end_of_turn(tokenizer),
                pad_token_id=end_of_turn(tokenizer),
            )
        written = output[0] if encoder else output[0, ids.shape[1] :]
        answer = tokenizer.decode(written, skip_special_tokens=True)
        if answer.strip():
            history.append({"role": "assistant", "content": answer.strip()})
        else:
            history.pop()  # a turn without words is no turn


def place(folder: Path, gpu: int) -> str:
    """Where `load_model` puts the model in `folder`: with GPUs of `gpu` bytes over several, where one is too small."""
    if not gpu:
        return "cpu"
    return "cuda" if weights_of(folder, "bfloat16") <= ROOM * gpu else "auto"


def _read(tokenizer: Tokenizer, history: list[dict[str, str]], encoder: bool) -> list[int]:
    """What the model reads before it answers: the tokens that it was trained to answer behind."""
    system, turns = "", history
    if history[0]["role"] == "system":
        system, turns = history[0]["content"], history[1:]
    if len(turns) == 1:
        return encode_prompt(tokenizer, turns[0]["content"], system, encoder=encoder)
    try:
        read = encode_history(tokenizer, history)
        return close_source(tokenizer, read) if encoder else read
    except (
        ValueError
    ):  # the template rewrites earlier turns, as one that drops reasoning does: then as it has them
        turns = [{**turn, "content": neutralise(tokenizer, turn["content"])} for turn in history]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
