"""Reference implementation in float64 NumPy: every layer, the loss, its gradients and the optimizers.

The implementation is simple and slow. The frameworks are compared with it, so it shares no code with the adapters and
computes the positions of windows independently. Images are (images, channels, height, width); weights are canonical.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import layers as layer_types
from .job import Optimizer, Training, WeightDecayOn
from .network import IMAGES, Network

ArraysByName = dict[str, np.ndarray]
Backward = Callable[[np.ndarray], tuple[np.ndarray, ArraysByName]]
"""Function that maps the gradient of a layer's output to the gradients of its input and of its parameters."""


def logits(
    network: Network, weights: ArraysByName, images: np.ndarray, masks: ArraysByName | None = None
) -> np.ndarray:
    """Return the network's logits of ``images``, (images, classes), without dropout."""
    return _forward(network, weights, images, masks or {}, training=False)[0]


def gradients(
    network: Network, weights: ArraysByName, images: np.ndarray, labels: np.ndarray, masks: ArraysByName | None = None
) -> tuple[float, ArraysByName]:
    """Return the mean cross-entropy, without dropout, and its gradient for every parameter."""
    loss, slopes, _ = _loss_and_gradients(network, weights, images, labels, masks or {})
    return loss, slopes


def _loss_and_gradients(
    network: Network, weights: ArraysByName, images: np.ndarray, labels: np.ndarray, masks: ArraysByName
) -> tuple[float, ArraysByName, ArraysByName]:
    """Return the loss, the gradients, and the batch statistics that update the arrays of ``network.state``."""
    scores, backwards, statistics = _forward(network, weights, images, masks, training=True)
    scores = scores - scores.max(axis=1, keepdims=True)
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    one_hot = np.eye(scores.shape[1])[labels]
    loss = -np.mean(np.log((probabilities * one_hot).sum(axis=1)))
    # The gradient of each layer's output: the sum over all layers that read it.
    by_output: list[Any] = [0.0] * len(network.nodes)
    by_output[-1] = (probabilities - one_hot) / len(labels)
    slopes: ArraysByName = {}
    for position in reversed(range(len(network.nodes))):
        node = network.nodes[position]
        by_input, by_parameters = backwards[position](by_output[position])
        for source in node.sources:  # both inputs of an addition have the same gradient
            if source != IMAGES:
                by_output[source] = by_output[source] + by_input
        slopes.update({f"{node.layer.name}/{key}": by_parameters[key] for key in node.parameters})
    for name, mask in masks.items():
        slopes[name] = slopes[name] * mask
    return float(loss), slopes, statistics


def train(
    network: Network,
    weights: ArraysByName,
    batches: list[Any],
    rates: list[float],
    training: Training,
    masks: ArraysByName,
) -> tuple[list[float], ArraysByName]:
    """Train one step per batch and learning rate, and return the loss of each step and the weights after the last.

    With ``training.ema_decay``, the moving average of the parameters is returned instead of the parameters.
    """
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    trainable = {name: weights[name] for name in network.parameters}
    zeros = {name: np.zeros_like(value) for name, value in trainable.items()}
    first, second, losses = dict(zeros), dict(zeros), []
    average = dict(trainable)
    momenta = {
        f"{node.layer.name}/{name}": node.layer.momentum
        for node in network.nodes
        for name in node.state
        if isinstance(node.layer, layer_types.BatchNormalization)
    }
    with_decay = _names_with_weight_decay(network, training)
    for step, ((images, labels), rate) in enumerate(zip(batches, rates, strict=True), 1):
        loss, slopes, statistics = _loss_and_gradients(network, weights, images, labels, masks)
        losses.append(loss)
        for name, value in statistics.items():
            weights[name] = momenta[name] * weights[name] + (1 - momenta[name]) * value
        for name in trainable:
            value = weights[name]
            own_rate = rate * (training.bias_lr_multiplier if name.endswith("/biases") else 1)
            slope = slopes[name] + (training.weight_decay * value if name in with_decay else 0)
            if training.optimizer is Optimizer.sgd:  # as in Caffe: the velocity includes the rate
                first[name] = training.momentum * first[name] + own_rate * slope
                weights[name] = value - first[name]
            else:  # Kingma and Ba, algorithm 1
                first[name] = training.beta1 * first[name] + (1 - training.beta1) * slope
                second[name] = training.beta2 * second[name] + (1 - training.beta2) * slope**2
                mean = first[name] / (1 - training.beta1**step)
                variance = second[name] / (1 - training.beta2**step)
                weights[name] = value - own_rate * mean / (np.sqrt(variance) + training.epsilon)
        if training.ema_decay is not None:  # tf.train.ExponentialMovingAverage with num_updates=step
            decay = min(training.ema_decay, (1 + step) / (10 + step))
            average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
    return losses, weights if training.ema_decay is None else {**weights, **average}


def _names_with_weight_decay(network: Network, training: Training) -> set[str]:
    names = set(network.parameters)
    if training.weight_decay_on is WeightDecayOn.weights:
        return {name for name in names if not name.endswith(("/biases", "/beta"))}
    if training.weight_decay_on is WeightDecayOn.hidden_dense_weights:
        *hidden, _ = [node.layer.name for node in network.nodes if isinstance(node.layer, layer_types.Dense)]
        return {f"{name}/weights" for name in hidden}
    return names


def window_starts(length: int, size: int, stride: int, padding: int | str, rounding: str = "floor") -> list[int]:
    """Return the start of each window in the image's coordinates: below 0 if it starts in the padding."""
    if padding == "same":
        count = math.ceil(length / stride)
        missing = max((count - 1) * stride + size - length, 0)
        return [number * stride - missing // 2 for number in range(count)]
    before = 0 if padding == "valid" else int(padding)
    starts, start, covered = [], -before, -before
    while start + size <= length + before:
        starts.append(start)
        covered = start + size
        start += stride
    if rounding == "ceil" and covered < length + before and start < length:
        starts.append(start)
    return starts


def _forward(
    network: Network, weights: ArraysByName, images: np.ndarray, masks: ArraysByName, *, training: bool
) -> tuple[np.ndarray, list[Backward], ArraysByName]:
    """Return the logits, the backward pass of each node, and the statistics of the batch."""
    values = {IMAGES: images.astype(np.float64)}
    backwards: list[Backward] = []
    statistics: ArraysByName = {}
    for position, node in enumerate(network.nodes):
        name = node.layer.name
        own = {key: weights[f"{name}/{key}"].astype(np.float64) for key in [*node.parameters, *node.state]}
        if f"{name}/weights" in masks:
            own["weights"] *= masks[f"{name}/weights"]
        inputs = [values[source] for source in node.sources]
        if training and node.state:
            own |= _moments(inputs[0])
            count = inputs[0].size // inputs[0].shape[1]
            statistics[f"{name}/mean"] = own["mean"]
            statistics[f"{name}/variance"] = own["variance"] * count / (count - 1)
        value, backward = _LAYERS[type(node.layer)](node.layer, own, *inputs)
        assert value.shape[1:] == node.output, f"{name} gives {value.shape[1:]}, not {node.output}"
        values[position] = value
        backwards.append(backward)
    return value, backwards, statistics


def _moments(value: np.ndarray) -> ArraysByName:
    """Return mean and biased variance of each map in a batch."""
    return {"mean": value.mean(axis=(0, 2, 3)), "variance": value.var(axis=(0, 2, 3))}


def _batch_normalization(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    """Normalize with the mean and variance in ``own``. The backward pass assumes that they are those of ``value``."""
    gamma = own.get("gamma", np.ones(value.shape[1]))[:, None, None]
    axes = (0, 2, 3)
    root = np.sqrt(own["variance"] + layer.epsilon)[:, None, None]
    normal = (value - own["mean"][:, None, None]) / root

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        by_normal = gradient * gamma
        by_mean = by_normal.mean(axis=axes)[:, None, None]
        by_variance = (by_normal * normal).mean(axis=axes)[:, None, None]
        slopes = {"beta": gradient.sum(axis=axes), "gamma": (gradient * normal).sum(axis=axes)}
        return (by_normal - by_mean - normal * by_variance) / root, slopes

    return normal * gamma + own["beta"][:, None, None], backward


def _dense(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    flat = value.reshape(len(value), -1)

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        slopes = {"weights": flat.T @ gradient, "biases": gradient.sum(axis=0)}
        return (gradient @ own["weights"].T).reshape(value.shape), slopes

    return flat @ own["weights"] + own["biases"], backward


def _convolution(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    weights = own["weights"]
    images, channels, height, width = value.shape
    tops = window_starts(height, layer.kernel, layer.stride, layer.padding)
    lefts = window_starts(width, layer.kernel, layer.stride, layer.padding)
    # The image with enough zeros around it for every window.
    above, before = max(-tops[0], 0), max(-lefts[0], 0)
    padded = np.pad(value, ((0, 0), (0, 0), (above, layer.kernel), (before, layer.kernel)))
    cells = [(row, column) for row in range(layer.kernel) for column in range(layer.kernel)]

    def under(row: int, column: int) -> Any:
        """Return the index of the image cells under the kernel's cell (row, column), for every window."""
        rows = [top + above + row for top in tops]
        columns = [left + before + column for left in lefts]
        return np.ix_(range(images), range(channels), rows, columns)

    result = np.zeros((images, layer.filters, len(tops), len(lefts)))
    if "biases" in own:
        result += own["biases"][:, None, None]
    for row, column in cells:
        result += np.moveaxis(np.tensordot(weights[:, :, row, column], padded[under(row, column)], (1, 1)), 0, 1)

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        by_weights, by_padded = np.zeros_like(weights), np.zeros_like(padded)
        for row, column in cells:
            at = under(row, column)
            by_weights[:, :, row, column] = np.tensordot(gradient, padded[at], ((0, 2, 3), (0, 2, 3)))
            by_padded[at] += np.moveaxis(np.tensordot(weights[:, :, row, column], gradient, (0, 1)), 0, 1)
        by_value = by_padded[:, :, above : above + height, before : before + width]
        return by_value, {"weights": by_weights, "biases": gradient.sum(axis=(0, 2, 3))}

    return result, backward


def _windows(layer: Any, value: np.ndarray) -> list[tuple[int, int, slice, slice]]:
    """Return row and column of each output, and the slices of the cells inside the image that it pools."""
    height, width = value.shape[2:]

    def clipped(length: int) -> list[slice]:
        starts = window_starts(length, layer.size, layer.stride, layer.padding, layer.rounding)
        return [slice(max(start, 0), min(start + layer.size, length)) for start in starts]

    return [
        (row, column, rows, columns)
        for row, rows in enumerate(clipped(height))
        for column, columns in enumerate(clipped(width))
    ]


def _max_pool(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    windows = _windows(layer, value)
    result = np.zeros((*value.shape[:2], windows[-1][0] + 1, windows[-1][1] + 1))
    for row, column, rows, columns in windows:
        result[:, :, row, column] = value[:, :, rows, columns].max(axis=(2, 3))

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        by_value = np.zeros_like(value)
        for row, column, rows, columns in windows:
            # Equal maxima share the gradient. They occur after a ReLU and a batch normalization.
            largest = value[:, :, rows, columns] == result[:, :, row : row + 1, column : column + 1]
            shares = largest / largest.sum(axis=(2, 3), keepdims=True)
            by_value[:, :, rows, columns] += shares * gradient[:, :, row : row + 1, column : column + 1]
        return by_value, {}

    return result, backward


def _average_pool(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    windows = _windows(layer, value)
    result = np.zeros((*value.shape[:2], windows[-1][0] + 1, windows[-1][1] + 1))
    for row, column, rows, columns in windows:
        result[:, :, row, column] = value[:, :, rows, columns].mean(axis=(2, 3))

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        by_value = np.zeros_like(value)
        for row, column, rows, columns in windows:
            cells = (rows.stop - rows.start) * (columns.stop - columns.start)
            by_value[:, :, rows, columns] += gradient[:, :, row : row + 1, column : column + 1] / cells
        return by_value, {}

    return result, backward


def _local_response_normalization(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    channels = range(value.shape[1])
    neighbours = [[other for other in channels if abs(other - channel) <= layer.radius] for channel in channels]
    sums = np.stack([layer.bias + layer.alpha * (value[:, neighbours[c]] ** 2).sum(axis=1) for c in channels], axis=1)

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        by_value = gradient * sums**-layer.beta
        for channel in channels:
            by_sum = -layer.beta * gradient[:, channel] * value[:, channel] * sums[:, channel] ** (-layer.beta - 1)
            for other in neighbours[channel]:
                by_value[:, other] += by_sum * layer.alpha * 2 * value[:, other]
        return by_value, {}

    return value * sums**-layer.beta, backward


def _global_average_pool(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    cells = value.shape[2] * value.shape[3]
    return value.mean(axis=(2, 3), keepdims=True), lambda gradient: (gradient / cells + 0 * value, {})


def _relu(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    return np.maximum(value, 0), lambda gradient: (gradient * (value > 0), {})


def _tanh(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    return np.tanh(value), lambda gradient: (gradient * (1 - np.tanh(value) ** 2), {})


def _add(layer: Any, own: ArraysByName, value: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, Backward]:
    return value + other, lambda gradient: (gradient, {})


def _dropout(layer: Any, own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    return value, lambda gradient: (gradient, {})  # no dropout: its random numbers differ between frameworks


_LAYERS: dict[type[layer_types.Layer], Callable[..., tuple[np.ndarray, Backward]]] = {
    layer_types.Convolution: _convolution,
    layer_types.MaxPool: _max_pool,
    layer_types.AveragePool: _average_pool,
    layer_types.GlobalAveragePool: _global_average_pool,
    layer_types.Relu: _relu,
    layer_types.Tanh: _tanh,
    layer_types.Dense: _dense,
    layer_types.Dropout: _dropout,
    layer_types.LocalResponseNormalization: _local_response_normalization,
    layer_types.BatchNormalization: _batch_normalization,
    layer_types.Add: _add,
}
"""The implementation of each layer type: ``(layer, arrays, *inputs)`` to its output and its backward pass."""
