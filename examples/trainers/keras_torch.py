"""Keras 3 over PyTorch: a Keras optimizer whose step is ours, and a training loop without one.

pip install "steepest[torch]" keras
python keras_torch.py
"""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"  # over TensorFlow and JAX, tensors are not stepped in place

import keras
import numpy as np
import torch

import steepest.torch


class FusedAdamW(keras.optimizers.Optimizer):
    """keras.optimizers.AdamW, to rounding, in one visit to memory.

    Keras' schedules, clipping, accumulation, averages, compile(), fit() and saving work as with any
    optimizer of Keras. `ours` are further options of ``steepest.torch.AdamW``.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        weight_decay: float = 0.004,
        ours: dict[str, Any] | None = None,
        **of_keras: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay, **of_keras)
        self.ours = ours or {}
        self.inner: Any = None

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        # The state lives in variables of Keras', which saves them with the model.
        self.momenta, self.velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def _begin(self) -> None:
        groups = [
            {
                "params": v.value,
                "weight_decay": self.weight_decay if self._use_weight_decay(v) else 0,
            }
            for v in self._trainable_variables
        ]
        # Keras adds another eps than PyTorch, at another place.
        options = {"eps": 1e-7, "convention": "keras"} | self.ours
        self.inner = steepest.torch.AdamW(groups, **options)
        for group, m, v in zip(groups, self.momenta, self.velocities, strict=True):
            step = torch.tensor(int(self.iterations))
            state = {"step": step, "exp_avg": m.value, "exp_avg_sq": v.value}
            self.inner.state[group["params"][0]] = state

    def _apply_weight_decay(self, variables: Any) -> None:
        """Nothing: the step does it."""

    def _backend_update_step(self, grads: Any, variables: Any, learning_rate: Any) -> None:
        """All variables in one call; Keras' own optimizers for PyTorch override the same method."""
        if self.inner is None:
            self._begin()
        self.inner.zero_grad()
        for g, variable in zip(grads, variables, strict=True):
            variable.value.grad = g
        for group in self.inner.param_groups:
            group["lr"] = float(learning_rate)
        self.inner.step()

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self.inner = None  # the number of steps may be another

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"ours": self.ours}


def data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(-1, 1, (256, 2)).astype("float32")
    return x, np.sin(3 * x[:, :1]) * x[:, 1:]


def network() -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32, "tanh"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((2,)), *layers])


def fitted(optimizer: Any, epochs: int = 20) -> tuple[Any, list[float]]:
    """A network that Keras' own fit() has trained, and its losses."""
    model = network()
    model.compile(optimizer, "mse")
    history = model.fit(*data(), batch_size=64, epochs=epochs, shuffle=False, verbose=0)
    return model, history.history["loss"]


def looped(optimizer: type, steps: int = 80, **options: Any) -> tuple[Any, list[float]]:
    """The same without Keras' optimizers: the variables of a network are PyTorch's parameters."""
    model, losses = network(), []
    inner = optimizer([v.value for v in model.trainable_variables], **options)
    x, y = map(torch.from_numpy, data())
    for i in range(steps):
        rows = slice(64 * i % 256, 64 * i % 256 + 64)
        inner.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x[rows], training=True), y[rows])
        loss.backward()
        inner.step()
        losses.append(float(loss.detach()))
    return model, losses


def main() -> None:
    _, losses = fitted(FusedAdamW(keras.optimizers.schedules.CosineDecay(1e-2, 80)))
    print(f"fit(): loss {losses[0]:.4f}, after 80 steps {losses[-1]:.4f}")
    _, losses = looped(steepest.torch.AdamW, lr=1e-2)
    print(f"a loop: loss {losses[0]:.4f}, after 80 steps {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
