"""A tiny random T5 with a Unigram tokenizer, for the tests of encoder–decoders."""

from pathlib import Path

from conftest import WORDS


def make_t5_tokenizer(folder: Path) -> None:
    """SentencePiece's way as T5 has it: an end token behind every text, no first token, no chat template."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(32, 127)]
    words = ["▁", *(f"▁{word}" for word in WORDS)]
    pieces = [*((token, 0.0) for token in special), *((word, -4.0) for word in words)]
    pieces += [(letter, -8.0) for letter in letters if letter not in " "]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def make_t5(folder: Path, *, seed: int = 0, dropout: float = 0.0, factor: float = 2.0) -> Path:
    """A random T5 of two and two layers with its tokenizer in `folder`.

    With a wide `factor`, what is read shows in what is written; with a narrow one, rounding stays small.
    """
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    make_t5_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            dropout_rate=dropout,
            feed_forward_proj="gated-gelu",
            initializer_factor=factor,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    return folder
