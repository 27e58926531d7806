"""`ift merge`: an ordinary model folder out of an adapter and its base.

In:  a run's folder, a version in MLflow, an adapter's folder or its id on the hub; where the model goes.
Out: a folder of safetensors with tokenizer, chat template, card and lineage, whose logits were compared.

    merge("runs/films", Path("films-merged"), uri="sqlite:///mlflow.db", dtype=None)
"""

import os
from pathlib import Path

from ift import fetching
from ift.console import own_terminal
from ift.errors import IftError
from ift.models import adapters, base


def merge(source: str, output: Path, *, uri: str, dtype: str | None) -> None:
    """Merge, and say where the model is. Raises `IftError` where there is no adapter or `output` exists."""
    folder = fetching.fetch(source, uri=uri)
    if not base.is_adapter(folder):
        raise IftError(
            f"{folder} is no adapter",
            wanted="the run or the folder of an adapter; this model is whole already",
        )
    output = output.absolute()
    kind = "AutoModelForSeq2SeqLM" if base.is_encoder_decoder(folder) else "AutoModelForCausalLM"
    with own_terminal(Path(os.devnull)) as terminal:
        with terminal.stage("merge") as stage:
            made = adapters.merge(folder, output, dtype=dtype, notify=stage.status)
            size, error = made["parameters"] / 1e6, made["relative_error_as_written"]
            stage.result(f"{size:,.1f} M parameters in {made['dtype']}, logits within {error:.0e}")
        terminal.say(f"model     {output}")
        terminal.say(f"to load   transformers.{kind}.from_pretrained({str(output)!r}), or: ift chat {output}")
