"""The table of common models: each is built without weights, and has as many parameters as its authors say."""

import pytest

from ift.models import known, shape

# The number of parameters that the model's page on the hub shows (from the headers of its safetensors), that its
# authors give, or that the well-known implementation counts.
PUBLISHED = {
    "meta-llama/Llama-2-7b": 6_738_415_616,
    "meta-llama/Llama-2-13b": 13_015_864_320,
    "meta-llama/Llama-2-70b": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.3-70B": 70_553_706_496,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 1_100_048_384,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM-135M": 134_515_008,
    "HuggingFaceTB/SmolLM-360M": 361_821_120,
    "HuggingFaceTB/SmolLM-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2-1.5B": 1_543_714_304,
    "Qwen/Qwen2-7B": 7_615_616_512,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.2": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_630_071_296,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b": 999_885_952,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-4k": 3_821_079_552,
    "microsoft/Phi-3-mini-128k": 3_821_079_552,
    "microsoft/Phi-3.5-mini": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini": 3_836_021_760,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMo-2-1124-13B": 13_716_198_400,
    "tiiuae/falcon-7b": 6_921_720_704,
    "tiiuae/falcon-40b": 41_303_293_952,
    "EleutherAI/pythia-14m": 14_067_712,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "google-t5/t5-small": 60_506_624,
    "google-t5/t5-base": 222_903_552,
    "google-t5/t5-large": 737_668_096,
    "google/flan-t5-small": 76_961_152,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xl": 2_849_757_184,
    "google/flan-t5-xxl": 11_135_332_352,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
}


def test_every_model_of_the_table_has_as_many_parameters_as_published() -> None:
    """Two and three layers deep, which is soon built; all further ones are like the third."""
    assert set(known.names()) == set(PUBLISHED)
    counted = {}
    for name, values in known.KNOWN.items():
        config = shape.built(name, values)
        two, three = (shape.shape_of(shape.shallow(config, layers), name).parameters for layers in (2, 3))
        depth = config.get_text_config().num_hidden_layers
        counted[name] = two + (depth - 2) * (three - two)
    assert counted == PUBLISHED


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M", "google/flan-t5-small", "google/gemma-3-1b"])
def test_a_whole_model_of_the_table_has_as_many_parameters_as_published(name: str) -> None:
    found = shape.shape_of(shape.built(name, known.KNOWN[name]), name)
    assert found.parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("variant", "model"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("google/gemma-2-2b-it", "google/gemma-2-2b"),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("EleutherAI/pythia-1b-deduped", "EleutherAI/pythia-1b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M"),
        ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-3-mini-4k"),
        ("gpt2", "openai-community/gpt2"),
    ],
)
def test_a_variant_has_the_shape_of_its_model(variant: str, model: str) -> None:
    assert known.config(variant) == known.KNOWN[model]


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-8B", "nobody/nothing", "meta-llama/Llama-2-7b/x"])
def test_what_is_not_in_the_table_is_not_guessed(name: str) -> None:
    assert known.config(name) is None
