"""Proof that a framework computes the network it is given: held against the float64 NumPy one, step by step.

Weights are scaled as He's, biases 0, dropout off, plain SGD: from the tutorials' own initial weights ten steps are
chaotic, and one framework's float32 and float64 drift further apart than two frameworks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import initialization, numpy_network
from .assembly import build_model
from .frameworks.base import Adapter
from .inputs import aligned, batches, test_batches, to_layout
from .job import BatchOrder, Job, Optimizer, Training
from .network import expand_blocks

IMAGES, BATCH, STEPS, RATE = 8, 4, 10, 0.001

BOUNDS = {"parity/logits_difference": 1e-4, "parity/gradient_difference": 1e-3, "parity/loss_difference": 1e-3}
"""The largest differences at which it still is the same network, in float32.

The slope of a ReLU jumps at 0: of the 400,000 activations of a small residual network about one lies so close that
rounding decides, which moves gradients by up to 3e-4 of the largest.
"""


class ParityBroken(Exception):
    """The framework computes something else; the message says what, and by how much."""


def check(job: Job, adapter_class: type[Adapter]) -> dict[str, float]:
    """The differences in ``BOUNDS`` for the network of ``job``, on images drawn from its seed.

    ``logits``: of one batch, relative to the largest logit; ``gradient``: of any parameter on the first step, relative
    to the largest gradient, beyond what rounding hides; ``loss``: of any of ten steps, relative to that loss.
    """
    job = replace(job, layers=conditioned(job.layers), training=_plain(job.training))
    _, model, network = build_model(job, adapter_class)
    weights, masks = initialization.weights(network, job.seed), initialization.masks(network, job.seed)
    random = np.random.RandomState([job.seed, 11])
    images = random.standard_normal((IMAGES, *network.nodes[0].input)).astype(np.float32)
    labels = random.randint(0, job.classes, IMAGES)

    treated = model.to_native(aligned(to_layout(images.transpose(0, 2, 3, 1), model.layout)))
    logits = model.predict(test_batches(treated, IMAGES))
    feed = batches(treated, model.to_native(labels.astype(model.label_type)), BATCH, BatchOrder.sequential, 0)
    losses = [model.train(feed, [RATE])]
    after = model.weights()
    losses.append(model.train(feed, [RATE] * (STEPS - 1)))

    expected = numpy_network.logits(network, weights, images, masks)
    halves = [(images[:BATCH], labels[:BATCH]), (images[BATCH:], labels[BATCH:])]
    _, gradients = numpy_network.gradients(network, weights, *halves[0], masks)
    steps, _ = numpy_network.train(network, weights, halves * (STEPS // 2), [RATE] * STEPS, job.training, masks)
    # The step, told by the weights before and after it, which are rounded to float32.
    found = {name: (weights[name].astype(np.float64) - after[name]) / RATE for name in network.parameters}
    rounding = {name: np.spacing(np.abs(weights[name])).astype(np.float64) / RATE for name in network.parameters}
    largest = max(float(np.abs(gradient).max()) for gradient in gradients.values())
    return {
        "parity/logits_difference": float(np.abs(logits - expected).max() / np.abs(expected).max()),
        "parity/gradient_difference": max(
            float((np.abs(found[name] - gradients[name]) - rounding[name]).max(initial=0)) for name in found
        )
        / largest,
        "parity/loss_difference": float((np.abs(np.concatenate(losses) - steps) / steps).max()),
    }


def conditioned(layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same layers with He-scaled weights, biases of 0 and nothing dropped."""
    scaled = {
        "weights": {"distribution": "normal_fan_in", "gain": 2},
        "biases": {"distribution": "constant", "value": 0},
    }
    return {
        name: {
            **layer,
            **{key: how for key, how in scaled.items() if layer.get(key) is not None},
            **({"keep": 1} if layer["type"] == "dropout" else {}),
        }
        for name, layer in expand_blocks(layers).items()
    }


def require(differences: dict[str, float]) -> None:
    """Raise ParityBroken if a difference is beyond its bound (or no number)."""
    broken = [f"{name}={differences[name]:.2g} (at most {bound:g})" for name, bound in BOUNDS.items()
              if not differences[name] <= bound]  # fmt: skip
    if broken:
        raise ParityBroken(f"this framework does not compute the network it was given: {', '.join(broken)}")


def _plain(training: Training) -> Training:
    """Plain SGD on the inputs of ``training``."""
    return Training(
        name="parity", preprocessing=training.preprocessing, order=BatchOrder.sequential, batch_size=BATCH, test_batch_size=IMAGES,
        iterations=STEPS, optimizer=Optimizer.sgd, learning_rate=RATE,
    )  # fmt: skip
