"""Keras's optimizers, with masks, weight decay and a learning-rate multiplier for each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from ...job import Optimizer
from ..base import Setup
from .network import assign


def create(setup: Setup, model: keras.Model, variables: Mapping[str, keras.Variable]) -> Any:
    """Return the optimizer for ``setup.training``; ``variables`` are the model's variables by canonical name.

    The attribute ``averages`` of the optimizer contains the moving averages of the parameters by canonical name. It is
    empty without ``ema_decay``.
    """
    training = setup.training
    names = {variable.path: name for name, variable in variables.items()}
    parameters = {names[variable.path]: variable for variable in model.trainable_variables}
    # Use the class of an instance: with PyTorch, Keras uses a faster subclass that updates all parameters in one call.
    if training.optimizer is Optimizer.adam:
        base = type(keras.optimizers.Adam())
        options = {"beta_1": training.beta1, "beta_2": training.beta2, "epsilon": training.epsilon}
        created: Any = type("Adam", (ParameterWise, CorrectedEpsilon, base), {})(training.learning_rate, **options)
    else:
        base = type(keras.optimizers.SGD())
        created = type("SGD", (ParameterWise, base), {})(training.learning_rate, momentum=training.momentum)
    created.prepare(setup, parameters)
    return created


class ParameterWise:
    """Base class of optimizers with masks, decay and rates per parameter and an optional average of the parameters.

    Weight decay changes the gradients. A regularizer of a layer would also change the loss that Keras returns.
    """

    def prepare(self, setup: Setup, parameters: Mapping[str, keras.Variable]) -> None:
        """Create the state for ``parameters``."""
        optimizer: Any = self
        self._training = setup.training
        self._names = {variable.path: name for name, variable in parameters.items()}
        self._multipliers = {name: setup.lr_multiplier(name) for name in parameters}
        self._decays = {name: setup.weight_decay(name) for name in parameters}
        optimizer.build(list(parameters.values()))
        # Masks depend on the seed, so they are variables: constants would be compiled into the step.
        self._masks = {}
        for name, mask in setup.masks.items():
            self._masks[name] = optimizer.add_variable_from_reference(parameters[name], "mask")
            assign(self._masks[name], np.array(np.broadcast_to(mask.transpose(2, 3, 1, 0), parameters[name].shape)))
        self.averages: dict[str, keras.Variable] = {}
        if setup.training.ema_decay is not None:
            for name, variable in parameters.items():
                self.averages[name] = optimizer.add_variable_from_reference(variable, "average")
                assign(self.averages[name], variable)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        super().apply(grads, trainable_variables)  # type: ignore[misc]
        if not self.averages:
            return
        step = ops.cast(self.iterations, "float32")  # type: ignore[attr-defined]
        share = 1 - ops.minimum(self._training.ema_decay, (1 + step) / (10 + step))  # Training.ema_decay_at
        for variable in self._trainable_variables:  # type: ignore[attr-defined]
            average = self.averages[self._names[variable.path]]
            average.assign_sub(share * (average.value - variable.value))

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        groups: dict[float, tuple[list[Any], list[Any]]] = {}
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            name = self._names[variable.path]
            if name in self._masks:
                gradient = gradient * self._masks[name].value
            if decay := self._decays[name]:
                gradient = gradient + decay * variable.value
            gradients, variables = groups.setdefault(self._multipliers[name], ([], []))
            gradients.append(gradient)
            variables.append(variable)
        for multiplier, (gradients, variables) in groups.items():
            rate = learning_rate if multiplier == 1 else learning_rate * multiplier
            super()._backend_update_step(gradients, variables, rate)  # type: ignore[misc]


class CorrectedEpsilon:
    """Base class of an Adam that adds epsilon after the bias correction of the second moment, as in the paper.

    Keras adds epsilon before the correction. Therefore epsilon is multiplied by sqrt(1 - beta2^t) in step t.
    """

    @property
    def epsilon(self) -> Any:
        step = ops.cast(self.iterations + 1, "float32")  # type: ignore[attr-defined]
        return self._epsilon * ops.sqrt(1 - ops.power(self.beta_2, step))  # type: ignore[attr-defined]

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._epsilon = value
