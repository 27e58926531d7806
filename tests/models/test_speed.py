import pytest

from ift.models.shape import built, shape_of
from ift.models.speed import operations, peak, utilization


def test_operations_of_a_small_llama_by_hand():
    config = built(
        "small",
        {
            "model_type": "llama",
            "vocab_size": 100,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
    )
    shape = shape_of(config, "small")
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 2 * 8  # q, k and v, o, the MLP's three, two norms
    passed = (2 * layer + 8) * 50 + 8 * 100 * 7
    assert operations(shape, tokens=50, supervised=7, full=True) == 6 * passed
    assert operations(shape, tokens=50, supervised=7, full=False) == 4 * passed


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("AMD Instinct MI300X", 1307),
        ("AMD Instinct MI250X", 191.5),  # one of its two dies
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
        ("cpu", None),
    ],
)
def test_the_peak_goes_by_whole_words_of_the_name(device, teraflops):
    assert peak(device) == (teraflops * 1e12 if teraflops else None)


def test_utilization_is_a_share_of_all_gpus():
    assert utilization(989e12, seconds=2, device="NVIDIA H100 80GB HBM3", count=4) == pytest.approx(1 / 8)
    assert utilization(1e12, seconds=2, device="cpu", count=4) is None
