"""Max-pooling as a custom operator, which ``torch.compile`` calls but does not compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
NO_DILATION = [1, 1]


def _max_pool(
    images: Tensor, size: list[int], stride: list[int], padding: list[int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    values, indices = aten.max_pool2d_with_indices(images, size, stride, padding, NO_DILATION, ceil_mode)
    return values, indices


def _max_pool_backward(
    gradient: Tensor,
    images: Tensor,
    size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    result: Tensor = aten.max_pool2d_with_indices_backward(
        gradient, images, size, stride, padding, NO_DILATION, ceil_mode, indices
    )
    return result


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, *ctx.options = inputs
    ctx.save_for_backward(images, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
    images, indices = ctx.saved_tensors
    return _operator_backward(gradient, images, *ctx.options, indices), None, None, None, None


_operator = torch.library.custom_op("gtdl_mlflow::max_pool", _max_pool, mutates_args=())
_operator_backward = torch.library.custom_op("gtdl_mlflow::max_pool_backward", _max_pool_backward, mutates_args=())
# On fake tensors, which have no data, the native operators compute only the shapes of the results.
_operator.register_fake(_max_pool)
_operator_backward.register_fake(_max_pool_backward)
_operator.register_autograd(_backward, setup_context=_save)


def max_pool(images: Tensor, size: int, stride: int, padding: tuple[int, int], ceil_mode: bool) -> Tensor:
    """Return the largest value of each window, computed by the native kernels.

    If inductor compiles max-pooling, a training step of caffe_mnist takes 1.3 times as long on a CPU. On a CPU,
    inductor of torch 2.13 also computed a gradient of 0 for a convolution followed by tanh, max-pooling and dense
    layers.
    """
    values, _ = _operator(images, [size, size], [stride, stride], list(padding), ceil_mode)
    return values
