"""The configs of common models, for plans where the hub cannot be reached.

In:  the hub id of a model, or of a variant of it (`-Instruct`, `-Chat`): tuning does not change a shape.
Out: what its config.json says about its shape, or None.

    config("meta-llama/Llama-3.2-1B-Instruct")    # {"model_type": "llama", "hidden_size": 2048, ...}

Where the numbers come from: Lightning-AI/litgpt's `litgpt/config.py`, which names the config.json behind each of its
entries, for Llama, Qwen 2.5 and 3, Mistral, Mixtral, Gemma, Phi, SmolLM2, OLMo 2, Falcon, Pythia and TinyLlama;
otherwise what stands beside the family below. tests/models/test_known.py builds every one of them without weights and
compares its parameters with the number that the model's authors or its page on the hub give.
"""

from typing import Any

Config = dict[str, Any]


def config(name: str) -> Config | None:
    """The config of the model with this hub id."""
    return _BY_NAME.get(_plain(name))


def names() -> list[str]:
    """The hub ids in the table, of the models as they were pre-trained."""
    return list(KNOWN)


_VARIANTS = ("-instruct", "-chat", "-it", "-base", "-hf", "-pt", "-sft", "-dpo", "-deduped")


def _plain(name: str) -> str:
    """`Qwen/Qwen2.5-7B-Instruct` -> `qwen/qwen2.5-7b`"""
    plain = name.lower()
    while True:
        shorter = plain
        for ending in _VARIANTS:
            shorter = shorter.removesuffix(ending)
        if shorter == plain:
            return plain.replace("-instruct-v", "-v")  # mistralai/Mistral-7B-Instruct-v0.3
        plain = shorter


def _like_llama(
    kind: str,
    vocabulary: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    *,
    tied: bool = False,
    **more: Any,
) -> Config:
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        **more,
    }


def _gpt_neox(vocabulary: int, hidden: int, layers: int, heads: int) -> Config:
    return {
        "model_type": "gpt_neox",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": False,
    }


def _gpt2(hidden: int, layers: int, heads: int) -> Config:
    return {"model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads}


def _opt(hidden: int, layers: int, heads: int, **more: Any) -> Config:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "word_embed_proj_dim": hidden,
        **more,
    }


def _t5(hidden: int, intermediate: int, layers: int, heads: int, *, flan: bool) -> Config:
    return {
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": hidden,
        "d_ff": intermediate,
        "d_kv": 64,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu" if flan else "relu",
        "tie_word_embeddings": not flan,
    }


#                                   vocabulary  hidden  intermediate  layers  heads  of keys and values
KNOWN: dict[str, Config] = {
    # Llama 2, 3, 3.1, 3.2, 3.3; TinyLlama
    "meta-llama/Llama-2-7b": _like_llama("llama", 32000, 4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b": _like_llama("llama", 32000, 5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b": _like_llama("llama", 32000, 8192, 28672, 80, 64, 8),
    "meta-llama/Meta-Llama-3-8B": _like_llama("llama", 128256, 4096, 14336, 32, 32, 8),
    "meta-llama/Meta-Llama-3-70B": _like_llama("llama", 128256, 8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.1-8B": _like_llama("llama", 128256, 4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.1-70B": _like_llama("llama", 128256, 8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.1-405B": _like_llama("llama", 128256, 16384, 53248, 126, 128, 8),
    "meta-llama/Llama-3.2-1B": _like_llama("llama", 128256, 2048, 8192, 16, 32, 8, tied=True),
    "meta-llama/Llama-3.2-3B": _like_llama("llama", 128256, 3072, 8192, 28, 24, 8, tied=True),
    "meta-llama/Llama-3.3-70B": _like_llama("llama", 128256, 8192, 28672, 80, 64, 8),
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": _like_llama("llama", 32000, 2048, 5632, 22, 32, 4),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _like_llama("llama", 32000, 2048, 5632, 22, 32, 4),
    # SmolLM: the sizes of SmolLM2 (their models' cards); SmolLM3: its card and transformers' defaults of its config
    "HuggingFaceTB/SmolLM-135M": _like_llama("llama", 49152, 576, 1536, 30, 9, 3, tied=True),
    "HuggingFaceTB/SmolLM-360M": _like_llama("llama", 49152, 960, 2560, 32, 15, 5, tied=True),
    "HuggingFaceTB/SmolLM-1.7B": _like_llama("llama", 49152, 2048, 8192, 24, 32, 32, tied=True),
    "HuggingFaceTB/SmolLM2-135M": _like_llama("llama", 49152, 576, 1536, 30, 9, 3, tied=True),
    "HuggingFaceTB/SmolLM2-360M": _like_llama("llama", 49152, 960, 2560, 32, 15, 5, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B": _like_llama("llama", 49152, 2048, 8192, 24, 32, 32, tied=True),
    "HuggingFaceTB/SmolLM3-3B": _like_llama("smollm3", 128256, 2048, 11008, 36, 16, 4, tied=True),
    # Qwen 2: the technical report (arXiv 2407.10671), table 1; Qwen 2.5 and 3
    "Qwen/Qwen2-0.5B": _like_llama("qwen2", 151936, 896, 4864, 24, 14, 2, tied=True),
    "Qwen/Qwen2-1.5B": _like_llama("qwen2", 151936, 1536, 8960, 28, 12, 2, tied=True),
    "Qwen/Qwen2-7B": _like_llama("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-0.5B": _like_llama("qwen2", 151936, 896, 4864, 24, 14, 2, tied=True),
    "Qwen/Qwen2.5-1.5B": _like_llama("qwen2", 151936, 1536, 8960, 28, 12, 2, tied=True),
    "Qwen/Qwen2.5-3B": _like_llama("qwen2", 151936, 2048, 11008, 36, 16, 2, tied=True),
    "Qwen/Qwen2.5-7B": _like_llama("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-14B": _like_llama("qwen2", 152064, 5120, 13824, 48, 40, 8),
    "Qwen/Qwen2.5-32B": _like_llama("qwen2", 152064, 5120, 27648, 64, 40, 8),
    "Qwen/Qwen2.5-72B": _like_llama("qwen2", 152064, 8192, 29568, 80, 64, 8),
    "Qwen/Qwen3-0.6B": _like_llama("qwen3", 151936, 1024, 3072, 28, 16, 8, tied=True, head_dim=128),
    "Qwen/Qwen3-1.7B": _like_llama("qwen3", 151936, 2048, 6144, 28, 16, 8, tied=True, head_dim=128),
    "Qwen/Qwen3-4B": _like_llama("qwen3", 151936, 2560, 9728, 36, 32, 8, tied=True, head_dim=128),
    "Qwen/Qwen3-8B": _like_llama("qwen3", 151936, 4096, 12288, 36, 32, 8, head_dim=128),
    "Qwen/Qwen3-14B": _like_llama("qwen3", 151936, 5120, 17408, 40, 40, 8, head_dim=128),
    "Qwen/Qwen3-32B": _like_llama("qwen3", 151936, 5120, 25600, 64, 64, 8, head_dim=128),
    "Qwen/Qwen3-30B-A3B": _like_llama(
        "qwen3_moe", 151936, 2048, 6144, 48, 32, 4,
        head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8,
    ),
    # Mistral, Mixtral
    "mistralai/Mistral-7B-v0.1": _like_llama("mistral", 32000, 4096, 14336, 32, 32, 8),
    "mistralai/Mistral-7B-v0.2": _like_llama("mistral", 32000, 4096, 14336, 32, 32, 8),
    "mistralai/Mistral-7B-v0.3": _like_llama("mistral", 32768, 4096, 14336, 32, 32, 8),
    "mistralai/Mistral-Small-24B-Base-2501": _like_llama(
        "mistral", 131072, 5120, 32768, 40, 32, 8, head_dim=128
    ),
    "mistralai/Mixtral-8x7B-v0.1": _like_llama(
        "mixtral", 32000, 4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2
    ),
    "mistralai/Mixtral-8x22B-v0.1": _like_llama(
        "mixtral", 32768, 6144, 16384, 56, 48, 8, num_local_experts=8, num_experts_per_tok=2
    ),
    # Gemma 1, 2, 3 (the one that reads text alone)
    "google/gemma-2b": _like_llama("gemma", 256000, 2048, 16384, 18, 8, 1, tied=True, head_dim=256),
    "google/gemma-7b": _like_llama("gemma", 256000, 3072, 24576, 28, 16, 16, tied=True, head_dim=256),
    "google/gemma-2-2b": _like_llama("gemma2", 256000, 2304, 9216, 26, 8, 4, tied=True, head_dim=256),
    "google/gemma-2-9b": _like_llama("gemma2", 256000, 3584, 14336, 42, 16, 8, tied=True, head_dim=256),
    "google/gemma-2-27b": _like_llama("gemma2", 256000, 4608, 36864, 46, 32, 16, tied=True, head_dim=128),
    "google/gemma-3-1b": _like_llama("gemma3_text", 262144, 1152, 6912, 26, 4, 1, tied=True, head_dim=256),
    # Phi
    "microsoft/phi-1_5": _like_llama("phi", 51200, 2048, 8192, 24, 32, 32, partial_rotary_factor=0.5),
    "microsoft/phi-2": _like_llama("phi", 51200, 2560, 10240, 32, 32, 32, partial_rotary_factor=0.4),
    "microsoft/Phi-3-mini-4k": _like_llama("phi3", 32064, 3072, 8192, 32, 32, 32),
    "microsoft/Phi-3-mini-128k": _like_llama("phi3", 32064, 3072, 8192, 32, 32, 32),
    "microsoft/Phi-3.5-mini": _like_llama("phi3", 32064, 3072, 8192, 32, 32, 32),
    "microsoft/phi-4": _like_llama("phi3", 100352, 5120, 17920, 40, 40, 10),
    "microsoft/Phi-4-mini": _like_llama("phi3", 200064, 3072, 8192, 32, 24, 8, tied=True),
    # OLMo 2
    "allenai/OLMo-2-1124-7B": _like_llama("olmo2", 100352, 4096, 11008, 32, 32, 32),
    "allenai/OLMo-2-1124-13B": _like_llama("olmo2", 100352, 5120, 13824, 40, 40, 40),
    # Falcon
    "tiiuae/falcon-7b": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32,
        "num_attention_heads": 71, "multi_query": True, "parallel_attn": True, "bias": False,
    },
    "tiiuae/falcon-40b": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 8192, "num_hidden_layers": 60,
        "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True, "bias": False,
    },
    # Pythia
    "EleutherAI/pythia-14m": _gpt_neox(50304, 128, 6, 4),
    "EleutherAI/pythia-70m": _gpt_neox(50304, 512, 6, 8),
    "EleutherAI/pythia-160m": _gpt_neox(50304, 768, 12, 12),
    "EleutherAI/pythia-410m": _gpt_neox(50304, 1024, 24, 16),
    "EleutherAI/pythia-1b": _gpt_neox(50304, 2048, 16, 8),
    "EleutherAI/pythia-1.4b": _gpt_neox(50304, 2048, 24, 16),
    "EleutherAI/pythia-2.8b": _gpt_neox(50304, 2560, 32, 32),
    "EleutherAI/pythia-6.9b": _gpt_neox(50432, 4096, 32, 32),
    "EleutherAI/pythia-12b": _gpt_neox(50688, 5120, 36, 40),
    # GPT-2: the paper, table 2; OPT: arXiv 2205.01068, table 1, and the printed model of opt-350m
    "openai-community/gpt2": _gpt2(768, 12, 12),
    "openai-community/gpt2-medium": _gpt2(1024, 24, 16),
    "openai-community/gpt2-large": _gpt2(1280, 36, 20),
    "openai-community/gpt2-xl": _gpt2(1600, 48, 25),
    "facebook/opt-125m": _opt(768, 12, 12),
    "facebook/opt-350m": _opt(
        1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False, _remove_final_layer_norm=False
    ),
    "facebook/opt-1.3b": _opt(2048, 24, 32),
    "facebook/opt-2.7b": _opt(2560, 32, 32),
    "facebook/opt-6.7b": _opt(4096, 32, 32),
    # T5 and FLAN-T5 (T5 1.1): the gin configs of google-research/text-to-text-transfer-transformer
    "google-t5/t5-small": _t5(512, 2048, 6, 8, flan=False),
    "google-t5/t5-base": _t5(768, 3072, 12, 12, flan=False),
    "google-t5/t5-large": _t5(1024, 4096, 24, 16, flan=False),
    "google/flan-t5-small": _t5(512, 1024, 8, 6, flan=True),
    "google/flan-t5-base": _t5(768, 2048, 12, 12, flan=True),
    "google/flan-t5-large": _t5(1024, 2816, 24, 16, flan=True),
    "google/flan-t5-xl": _t5(2048, 5120, 24, 32, flan=True),
    "google/flan-t5-xxl": _t5(4096, 10240, 24, 64, flan=True),
    # DeepSeek-V2-Lite: arXiv 2405.04434, appendix B
    "deepseek-ai/DeepSeek-V2-Lite": _like_llama(
        "deepseek_v2", 102400, 2048, 10944, 27, 16, 16,
        q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, moe_intermediate_size=1408,
        first_k_dense_replace=1,
    ),
}  # fmt: skip

_ALIASES = {"gpt2": "openai-community/gpt2", "meta-llama/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B"}
_BY_NAME = {_plain(name): shape for name, shape in KNOWN.items()}
_BY_NAME |= {_plain(alias): KNOWN[name] for alias, name in _ALIASES.items()}
