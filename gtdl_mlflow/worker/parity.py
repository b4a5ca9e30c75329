"""Parity check: compare a framework's results with those of the float64 NumPy network.

The check uses He initialization, biases of 0, no dropout and plain SGD. With the initial weights of the tutorials, ten
steps are chaotic: float32 and float64 results of one framework differ more than the results of two frameworks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import initialization, numpy_network
from .assembly import build_model
from .frameworks.base import Adapter
from .inputs import aligned, batches, test_batches, to_layout
from .job import BatchOrder, Job, Optimizer, Precision, Training
from .network import expand_blocks
from .random_streams import Use, stream

IMAGES, BATCH, STEPS, RATE = 8, 4, 10, 0.001

METRICS = ("parity/logits_difference", "parity/gradient_difference", "parity/loss_difference")

BOUNDS = {
    Precision.float32: (1e-4, 1e-3, 1e-3),
    Precision.tf32: (5e-3, 0.1, 0.1),
    Precision.bfloat16: (0.02, 0.3, 0.3),
}
"""Largest differences of ``METRICS`` that rounding can explain, by precision.

The derivative of a ReLU is discontinuous at 0. In a small residual network, about one of 400,000 activations is so
close to 0 that rounding changes its sign. This changes gradients by up to 3e-4 of the largest gradient. In bfloat16,
which has a mantissa of 7 bits (tf32: 10 bits), logits of the default networks differ from float64 by up to 0.9 %,
gradients by up to 19 % and the losses of ten steps by up to 16 %.
"""


class ParityBroken(Exception):
    """The framework does not compute the network of its job; the message has the differences."""


def check(job: Job, adapter_class: type[Adapter]) -> dict[str, float]:
    """Return the differences of ``METRICS`` for the network of ``job``, on random images.

    * ``logits_difference``: largest difference of the logits of one batch, relative to the largest logit.
    * ``gradient_difference``: largest difference of the gradients of the first step, minus the float32 rounding error
      of each weight divided by the learning rate, relative to the largest gradient.
    * ``loss_difference``: largest relative difference of the losses of ten steps.
    """
    job = replace(job, layers=well_conditioned(job.layers), training=_plain_sgd(job.training))
    _, model, network = build_model(job, adapter_class)
    weights, masks = initialization.weights(network, job.seed), initialization.masks(network, job.seed)
    random = stream(Use.PARITY, job.seed)
    images = random.standard_normal((IMAGES, *network.nodes[0].input)).astype(np.float32)
    labels = random.randint(0, job.classes, IMAGES)

    native_images = model.to_native(aligned(to_layout(images.transpose(0, 2, 3, 1), model.layout)))
    native_labels = model.to_native(labels.astype(model.label_type))
    logits = model.predict(test_batches(native_images, IMAGES))
    training_batches = batches(native_images, native_labels, BATCH, BatchOrder.sequential, 0)
    losses = [model.train(training_batches, [RATE])]
    after = model.weights()
    losses.append(model.train(training_batches, [RATE] * (STEPS - 1)))

    expected_logits = numpy_network.logits(network, weights, images, masks)
    halves = [(images[:BATCH], labels[:BATCH]), (images[BATCH:], labels[BATCH:])]
    _, expected = numpy_network.gradients(network, weights, *halves[0], masks)
    expected_losses, _ = numpy_network.train(
        network, weights, halves * (STEPS // 2), [RATE] * STEPS, job.training, masks
    )
    # The applied gradient is computed from the weights before and after the step, which are rounded to float32.
    gradients = {name: (weights[name].astype(np.float64) - after[name]) / RATE for name in network.parameters}
    rounding = {name: np.spacing(np.abs(weights[name])).astype(np.float64) / RATE for name in network.parameters}
    largest = max(float(np.abs(gradient).max()) for gradient in expected.values())
    beyond_rounding = [np.abs(gradients[name] - expected[name]) - rounding[name] for name in gradients]
    return {
        "parity/logits_difference": float(np.abs(logits - expected_logits).max() / np.abs(expected_logits).max()),
        "parity/gradient_difference": max(float(each.max(initial=0)) for each in beyond_rounding) / largest,
        "parity/loss_difference": float((np.abs(np.concatenate(losses) - expected_losses) / expected_losses).max()),
    }


def well_conditioned(layers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the layers with He-scaled weights, biases of 0 and no dropout."""
    scaled = {
        "weights": {"distribution": "normal_fan_in", "gain": 2},
        "biases": {"distribution": "constant", "value": 0},
    }
    return {
        name: {
            **layer,
            **{key: initializer for key, initializer in scaled.items() if layer.get(key) is not None},
            **({"keep": 1} if layer["type"] == "dropout" else {}),
        }
        for name, layer in expand_blocks(layers).items()
    }


def require(differences: dict[str, float], precision: Precision) -> None:
    """Require that every difference is within its bound for the precision.

    Raises:
        ParityBroken: a difference exceeds its bound or is NaN.
    """
    broken = [
        f"{name}={differences[name]:.2g} (at most {bound:g})"
        for name, bound in zip(METRICS, BOUNDS[precision], strict=True)
        if not differences[name] <= bound
    ]
    if broken:
        raise ParityBroken(f"this framework does not compute the network of its job: {', '.join(broken)}")


def _plain_sgd(training: Training) -> Training:
    return Training(
        name="parity",
        preprocessing=training.preprocessing,
        order=BatchOrder.sequential,
        batch_size=BATCH,
        test_batch_size=IMAGES,
        iterations=STEPS,
        optimizer=Optimizer.sgd,
        learning_rate=RATE,
    )
