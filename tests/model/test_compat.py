"""Each private interface of torch that `model/compat.py` uses is there and does what we take it for."""

import pytest
import torch
import torch.nn.functional as F

from lora_dist.model import compat


def test_torch_packs_fp32_and_no_fp64() -> None:
    assert compat.can_pack(torch.float32) == torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    assert not compat.can_pack(torch.float64)


@pytest.mark.parametrize("gelu", [False, True])
def test_reorder_linear_weight_and_linear_pointwise_are_a_linear_layer(gelu: bool) -> None:
    if not compat.can_pack(torch.float32):
        pytest.skip("torch packs no fp32 on this CPU")
    assert torch.ops.mkldnn._reorder_linear_weight
    assert torch.ops.mkldnn._linear_pointwise
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 7, 80), torch.randn(48, 80), torch.randn(48)
    expected = F.linear(x, weight, bias)
    if gelu:
        expected = F.gelu(expected, approximate="tanh")
    torch.testing.assert_close(compat.product(x, compat.pack(weight), bias, gelu=gelu), expected, rtol=1e-5, atol=1e-4)
