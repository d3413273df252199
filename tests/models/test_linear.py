from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from diveparse.models import linear as linear_module
from diveparse.models.linear import gelu_of_linear, linear, linear_of_gelu

NARROW, WIDE = 12, 40
Layer = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LAYERS: dict[str, tuple[Layer, Layer]] = {  # each with what it is to equal
    "linear": (linear, F.linear),
    "linear of gelu": (linear_of_gelu, lambda x, weight, bias: F.linear(F.gelu(x), weight, bias)),
}


@pytest.fixture(params=["AVX512", "AVX2", "without oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way that products can go, whatever this processor has."""
    if request.param == "without oneDNN":
        monkeypatch.setattr(linear_module, "HAS_ONEDNN", False)
    elif not linear_module.HAS_ONEDNN:
        pytest.skip("torch calls another library here")
    else:
        monkeypatch.setattr(linear_module, "INSTRUCTIONS", request.param)


def arguments(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (*shape, NARROW), (WIDE, NARROW), (WIDE,)
    return [torch.randn(size, generator=generator, requires_grad=True) for size in sizes]


def run(layer: Layer, inputs: Sequence[Any]) -> tuple[int, list[Tensor]]:
    """Bytes kept for the gradient, and the result with every gradient."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = layer(*inputs)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    return sum(kept.values()), [result, *torch.autograd.grad(result.float().square().sum(), wanted)]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(3,), (2, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("num_rows", [4, 1024])
def test_a_layer_and_its_gradients_are_torchs(
    name: str, shape: tuple[int, ...], num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "CHUNK_ROWS", num_rows)
    layer, torchs = LAYERS[name]
    _, found = run(layer, arguments(*shape))
    _, expected = run(torchs, arguments(*shape))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert one.dtype == torch.float32


@pytest.mark.usefixtures("library")
def test_a_part_of_a_weight_and_moved_inputs_are_taken_as_they_lie() -> None:
    x, weight, bias = arguments(6, 5)
    x, weight, bias = x.transpose(0, 1), weight.chunk(2)[1], bias.chunk(2)[1]
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("library")
def test_gelu_of_a_layer_is_torchs() -> None:
    x, weight, bias = (tensor.detach() for tensor in arguments(2, 300))
    expected = F.gelu(F.linear(x, weight, bias))
    torch.testing.assert_close(gelu_of_linear(x, weight, bias), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", LAYERS)
def test_what_needs_no_gradient_may_stand_in_each_place(name: str) -> None:
    x, weight, bias = arguments(2, 5)
    for inputs in ([x.detach(), weight, bias], [x, weight.detach(), bias.detach()], [x, weight, None]):
        _, found = run(LAYERS[name][0], inputs)
        _, expected = run(LAYERS[name][1], inputs)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_layer_of_gelu_keeps_its_input_alone() -> None:
    num_bytes, _ = run(LAYERS["linear of gelu"][1], arguments(2, 5))
    fewer_bytes, _ = run(linear_of_gelu, arguments(2, 5))
    assert num_bytes - fewer_bytes == 4 * (2 * 5) * NARROW


@pytest.mark.parametrize("name", LAYERS)
def test_under_autocast_a_layer_is_torchs_to_the_bit(name: str) -> None:
    layer, torchs = LAYERS[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, found = run(layer, [tensor.detach().bfloat16().requires_grad_() for tensor in arguments(2, 5)])
        _, expected = run(torchs, [tensor.detach().bfloat16().requires_grad_() for tensor in arguments(2, 5)])
        assert linear(*arguments(2, 5)).dtype == torch.bfloat16
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
