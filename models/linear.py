"""Linear layers on a CPU, by the fastest of the libraries that torch carries, and keeping little for the gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# torch gives products of fp32 matrices to MKL, which leaves AVX-512 unused on AMD's processors and is a little slower
# with AVX2 too; oneDNN, which torch carries for graphs that it compiles, is not
INSTRUCTIONS = torch.backends.cpu.get_cpu_capability()
HAS_ONEDNN = INSTRUCTIONS in {"AVX2", "AVX512"} and hasattr(torch.ops.mkldnn, "_linear_pointwise")
CHUNK_ROWS = 1024  # of an MLP at a time: the hidden activations of so many rows stay in a CPU's cache


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`. x: (..., from). weight: (to, from). bias: (to). Returns: (..., to)."""
    if not is_for_onednn(x):
        return F.linear(x, weight, bias)
    result: Tensor = Linear.apply(x, weight, bias)
    return result


def linear_of_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(F.gelu(x), weight, bias)`, of which only x is kept: GELU is computed again for the gradient.

    A block then keeps almost a fifth less. x: (..., from), result: (..., to).
    """
    result: Tensor = LinearOfGelu.apply(x, weight, bias)
    return result


def gelu_of_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.gelu(F.linear(x, weight, bias))` where no gradient is wanted. x: (..., from), result: (..., to)."""
    return product(x, weight, bias, gelu=True)


def row_chunks(x: Tensor) -> tuple[Tensor, ...]:
    """The rows of x, (..., from), in chunks that a CPU's cache holds; on a GPU in one, and in a graph for any batch."""
    rows = x.flatten(0, -2)
    return rows.split(CHUNK_ROWS) if x.is_cpu and not torch.compiler.is_exporting() else (rows,)


def join_rows(rows: list[Tensor]) -> Tensor:
    """Results of `row_chunks` as one tensor, without a copy where there is one chunk."""
    return rows[0] if len(rows) == 1 else torch.cat(rows)


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return (
            product(gradient, weight.T) if ctx.needs_input_grad[0] else None,
            sum_of_products(rows, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


class LinearOfGelu(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return join_rows([product(F.gelu(rows), weight, bias) for rows in row_chunks(x)]).view(*x.shape[:-1], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors  # where autocast runs, x and gradient are narrower numbers than the weight
        x_gradients, weight_gradients = [], []
        for rows, gradients in zip(row_chunks(x), row_chunks(gradient), strict=True):
            x_gradients.append(torch.ops.aten.gelu_backward(product(gradients, weight.to(gradient.dtype).T), rows))
            weight_gradients.append(sum_of_products(gradients, F.gelu(rows)))
        weight_gradient = sum(weight_gradients[1:], weight_gradients[0])
        bias_gradient = gradient.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return join_rows(x_gradients).view_as(x), weight_gradient.to(weight.dtype), bias_gradient


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`F.linear`, and GELU after it if it is asked for; without gradients of its own."""
    if is_for_onednn(x):
        after, algorithm = ("gelu", "none") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], algorithm)
    result = F.linear(x, weight, bias)
    return F.gelu(result) if gelu else result


def sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """`x.T @ y`. x: (rows, to). y: (rows, from)."""
    if is_for_onednn(x) and INSTRUCTIONS == "AVX512":  # with AVX2 MKL is the faster one for these
        return product(x.T, y.T)
    return x.T @ y


def is_for_onednn(x: Tensor) -> bool:
    is_plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return HAS_ONEDNN and is_plain and not torch.compiler.is_exporting()  # its product has no place in a portable graph
