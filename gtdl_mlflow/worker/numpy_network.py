"""Every layer of ``worker/layers.py``, its loss, gradients and optimizers: slow, obvious, in float64.

What the frameworks are held against, so it shares no code with the adapters and works out for itself where windows lie.
Images are (images, channels, height, width); weights are canonical.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import layers as vocabulary
from .job import Optimizer, Training, WeightDecayOn
from .network import IMAGES, Network, Node

ArraysByName = dict[str, np.ndarray]
Backward = Callable[[np.ndarray], tuple[np.ndarray, ArraysByName]]
"""From the gradient of what a layer gave to that of what it was given, and of its parameters."""


def logits(
    network: Network, weights: ArraysByName, images: np.ndarray, masks: ArraysByName | None = None
) -> np.ndarray:
    """What the network says of ``images``, without dropout."""
    return _forward(network, weights, images, masks or {}, training=False)[0]


def gradients(
    network: Network, weights: ArraysByName, images: np.ndarray, labels: np.ndarray, masks: ArraysByName | None = None
) -> tuple[float, ArraysByName]:
    """The mean cross-entropy, without dropout, and its gradient by every parameter."""
    loss, found, _ = _learn(network, weights, images, labels, masks or {})
    return loss, found


def _learn(
    network: Network, weights: ArraysByName, images: np.ndarray, labels: np.ndarray, masks: ArraysByName
) -> tuple[float, ArraysByName, ArraysByName]:
    """Loss, gradients, and what the arrays of ``network.state`` follow: this batch's statistics."""
    said, backwards, statistics = _forward(network, weights, images, masks, training=True)
    said = said - said.max(axis=1, keepdims=True)
    probabilities = np.exp(said) / np.exp(said).sum(axis=1, keepdims=True)
    wanted = np.eye(said.shape[1])[labels]
    loss = -np.mean(np.log((probabilities * wanted).sum(axis=1)))
    # What comes back to each layer's output, from all that take it.
    back: list[Any] = [0.0] * len(network.nodes)
    back[-1] = (probabilities - wanted) / len(labels)
    found: ArraysByName = {}
    for place in reversed(range(len(network.nodes))):
        node = network.nodes[place]
        gradient, parameters = backwards[place](back[place])
        for source in node.sources:  # an addition hands the same to both
            if source != IMAGES:
                back[source] = back[source] + gradient
        found.update({f"{node.layer.name}/{name}": value for name, value in parameters.items()})
    return float(loss), found, statistics


def train(
    network: Network,
    weights: ArraysByName,
    feed: list[Any],
    rates: list[float],
    training: Training,
    masks: ArraysByName,
) -> tuple[list[float], ArraysByName]:
    """The loss of each step and the weights after the last, one step per batch of ``feed`` and rate of ``rates``.

    With ``training.ema_decay`` it is their average that comes back.
    """
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    learning = {name: weights[name] for name in network.parameters}
    zeros = {name: np.zeros_like(value) for name, value in learning.items()}
    first, second, losses = dict(zeros), dict(zeros), []
    average = dict(learning)
    kept_share = {f"{node.layer.name}/{name}": node.layer.momentum for node in network.nodes for name in node.state
                  if isinstance(node.layer, vocabulary.BatchNormalization)}  # fmt: skip
    decayed = _decayed(network, training)
    for step, ((images, labels), rate) in enumerate(zip(feed, rates, strict=True), 1):
        loss, gradient, statistics = _learn(network, weights, images, labels, masks)
        losses.append(loss)
        for name, value in statistics.items():
            weights[name] = kept_share[name] * weights[name] + (1 - kept_share[name]) * value
        for name in learning:
            value = weights[name]
            own_rate = rate * (training.bias_lr_multiplier if name.endswith("/biases") else 1)
            slope = gradient[name] + (training.weight_decay * value if name in decayed else 0)
            if training.optimizer is Optimizer.sgd:  # Caffe's: the rate inside the velocity
                first[name] = training.momentum * first[name] + own_rate * slope
                weights[name] = value - first[name]
            else:  # Kingma and Ba, algorithm 1
                first[name] = training.beta1 * first[name] + (1 - training.beta1) * slope
                second[name] = training.beta2 * second[name] + (1 - training.beta2) * slope**2
                mean = first[name] / (1 - training.beta1**step)
                variance = second[name] / (1 - training.beta2**step)
                weights[name] = value - own_rate * mean / (np.sqrt(variance) + training.epsilon)
        if training.ema_decay is not None:  # tf.train.ExponentialMovingAverage, num_updates being the step
            kept = min(training.ema_decay, (1 + step) / (10 + step))
            average = {name: kept * value + (1 - kept) * weights[name] for name, value in average.items()}
    return losses, weights if training.ema_decay is None else {**weights, **average}


def _decayed(network: Network, training: Training) -> set[str]:
    names = set(network.parameters)
    if training.weight_decay_on is WeightDecayOn.weights:
        return {name for name in names if not name.endswith(("/biases", "/beta"))}
    if training.weight_decay_on is WeightDecayOn.hidden_dense_weights:
        *hidden, _ = [node.layer.name for node in network.nodes if isinstance(node.layer, vocabulary.Dense)]
        return {f"{name}/weights" for name in hidden}
    return names


def window_starts(length: int, size: int, stride: int, padding: int | str, rounding: str = "floor") -> list[int]:
    """Where each window begins, in the image's own coordinates: below 0 if it begins in the padding."""
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
    """What comes out, the way back through each node, and the statistics of the batch."""
    values = {IMAGES: images.astype(np.float64)}
    backwards: list[Backward] = []
    statistics: ArraysByName = {}
    for node in network.nodes:
        name = node.layer.name
        own = {key: weights[f"{name}/{key}"].astype(np.float64) for key in [*node.parameters, *node.state]}
        given = [values[source] for source in node.sources]
        if isinstance(node.layer, vocabulary.BatchNormalization):
            value, backward, seen = _batch_normalization(node.layer, own, given[0], training)
            statistics.update({f"{name}/{key}": each for key, each in seen.items()})
        else:
            value, backward = _layer(node, own, given, masks.get(f"{name}/weights"))
        assert value.shape[1:] == node.output, f"{name} gives {value.shape[1:]}, not {node.output}"
        values[len(values) - 1] = value  # the images are one of them
        backwards.append(backward)
    return value, backwards, statistics


def _layer(
    node: Node, own: ArraysByName, given: list[np.ndarray], mask: np.ndarray | None
) -> tuple[np.ndarray, Backward]:
    layer, value = node.layer, given[0]
    if isinstance(layer, vocabulary.Convolution):
        return _convolution(layer, own, value, mask)
    if isinstance(layer, vocabulary.MaxPool):
        return _max_pool(layer, value)
    if isinstance(layer, vocabulary.AveragePool):
        return _average_pool(layer, value)
    if isinstance(layer, vocabulary.GlobalAveragePool):
        cells = value.shape[2] * value.shape[3]
        return value.mean(axis=(2, 3), keepdims=True), lambda gradient: (gradient / cells + 0 * value, {})
    if isinstance(layer, vocabulary.LocalResponseNormalization):
        return _local_response_normalization(layer, value)
    if isinstance(layer, vocabulary.Dense):
        return _dense(own, value)
    if isinstance(layer, vocabulary.Relu):
        return np.maximum(value, 0), lambda gradient: (gradient * (value > 0), {})
    if isinstance(layer, vocabulary.Tanh):
        return np.tanh(value), lambda gradient: (gradient * (1 - np.tanh(value) ** 2), {})
    if isinstance(layer, vocabulary.Add):
        return given[0] + given[1], lambda gradient: (gradient, {})
    assert isinstance(layer, vocabulary.Dropout)
    return value, lambda gradient: (gradient, {})


def _batch_normalization(
    layer: Any, own: ArraysByName, value: np.ndarray, training: bool
) -> tuple[np.ndarray, Backward, ArraysByName]:
    gamma = own.get("gamma", np.ones(value.shape[1]))[:, None, None]
    beta = own["beta"][:, None, None]
    over, count = (0, 2, 3), value.size // value.shape[1]
    mean = value.mean(axis=over) if training else own["mean"]
    variance = ((value - mean[:, None, None]) ** 2).mean(axis=over) if training else own["variance"]
    root = np.sqrt(variance + layer.epsilon)[:, None, None]
    normal = (value - mean[:, None, None]) / root

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        by_normal = gradient * gamma
        by_mean = by_normal.mean(axis=over)[:, None, None]
        by_variance = (by_normal * normal).mean(axis=over)[:, None, None]
        slopes = {"beta": gradient.sum(axis=over), "gamma": (gradient * normal).sum(axis=over)}
        own_slopes = {name: slope for name, slope in slopes.items() if name in own}
        return (by_normal - by_mean - normal * by_variance) / root, own_slopes

    seen = {"mean": mean, "variance": variance * count / (count - 1)} if training else {}
    return normal * gamma + beta, backward, seen


def _dense(own: ArraysByName, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    flat = value.reshape(len(value), -1)

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        parameters = {"weights": flat.T @ gradient, "biases": gradient.sum(axis=0)}
        return (gradient @ own["weights"].T).reshape(value.shape), parameters

    return flat @ own["weights"] + own["biases"], backward


def _convolution(
    layer: Any, own: ArraysByName, value: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, Backward]:
    weights = own["weights"] if mask is None else own["weights"] * mask
    images, channels, height, width = value.shape
    tops = window_starts(height, layer.kernel, layer.stride, layer.padding)
    lefts = window_starts(width, layer.kernel, layer.stride, layer.padding)
    # The image in a frame of zeros wide enough for every window.
    above, before = max(-tops[0], 0), max(-lefts[0], 0)
    frame = np.pad(value, ((0, 0), (0, 0), (above, layer.kernel), (before, layer.kernel)))
    cells = [(row, column) for row in range(layer.kernel) for column in range(layer.kernel)]

    def under(row: int, column: int) -> Any:
        """What the kernel's cell (row, column) lies on, for every window."""
        rows = [top + above + row for top in tops]
        columns = [left + before + column for left in lefts]
        return np.ix_(range(images), range(channels), rows, columns)

    result = np.zeros((images, layer.filters, len(tops), len(lefts)))
    if "biases" in own:
        result += own["biases"][:, None, None]
    for row, column in cells:
        result += np.moveaxis(np.tensordot(weights[:, :, row, column], frame[under(row, column)], (1, 1)), 0, 1)

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        slope, spread = np.zeros_like(weights), np.zeros_like(frame)
        for row, column in cells:
            at = under(row, column)
            slope[:, :, row, column] = np.tensordot(gradient, frame[at], ((0, 2, 3), (0, 2, 3)))
            spread[at] += np.moveaxis(np.tensordot(weights[:, :, row, column], gradient, (0, 1)), 0, 1)
        inside = spread[:, :, above : above + height, before : before + width]
        slope = slope if mask is None else slope * mask
        slopes = {"weights": slope, "biases": gradient.sum(axis=(0, 2, 3))}
        return inside, {name: slopes[name] for name in own}

    return result, backward


def _windows(layer: Any, value: np.ndarray) -> list[tuple[int, int, slice, slice]]:
    """Row and column of each output, and the cells inside the image that it pools."""
    height, width = value.shape[2:]

    def clipped(length: int) -> list[slice]:
        starts = window_starts(length, layer.size, layer.stride, layer.padding, layer.rounding)
        return [slice(max(start, 0), min(start + layer.size, length)) for start in starts]

    return [
        (row, column, rows, columns)
        for row, rows in enumerate(clipped(height))
        for column, columns in enumerate(clipped(width))
    ]


def _max_pool(layer: Any, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    windows = _windows(layer, value)
    result = np.zeros((*value.shape[:2], windows[-1][0] + 1, windows[-1][1] + 1))
    for row, column, rows, columns in windows:
        result[:, :, row, column] = value[:, :, rows, columns].max(axis=(2, 3))

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        spread = np.zeros_like(value)
        for row, column, rows, columns in windows:
            largest = value[:, :, rows, columns] == result[:, :, row : row + 1, column : column + 1]
            spread[:, :, rows, columns] += largest * gradient[:, :, row : row + 1, column : column + 1]
        return spread, {}

    return result, backward


def _average_pool(layer: Any, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    windows = _windows(layer, value)
    result = np.zeros((*value.shape[:2], windows[-1][0] + 1, windows[-1][1] + 1))
    for row, column, rows, columns in windows:
        result[:, :, row, column] = value[:, :, rows, columns].mean(axis=(2, 3))

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        spread = np.zeros_like(value)
        for row, column, rows, columns in windows:
            cells = (rows.stop - rows.start) * (columns.stop - columns.start)
            spread[:, :, rows, columns] += gradient[:, :, row : row + 1, column : column + 1] / cells
        return spread, {}

    return result, backward


def _local_response_normalization(layer: Any, value: np.ndarray) -> tuple[np.ndarray, Backward]:
    channels = range(value.shape[1])
    near = [[other for other in channels if abs(other - channel) <= layer.radius] for channel in channels]
    sums = np.stack([layer.bias + layer.alpha * (value[:, near[c]] ** 2).sum(axis=1) for c in channels], axis=1)

    def backward(gradient: np.ndarray) -> tuple[np.ndarray, ArraysByName]:
        spread = gradient * sums**-layer.beta
        for channel in channels:
            by_sum = -layer.beta * gradient[:, channel] * value[:, channel] * sums[:, channel] ** (-layer.beta - 1)
            for other in near[channel]:
                spread[:, other] += by_sum * layer.alpha * 2 * value[:, other]
        return spread, {}

    return value * sums**-layer.beta, backward
