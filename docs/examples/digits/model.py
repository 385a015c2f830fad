"""A small convolutional network in plain JAX, its training step and its checkpoint."""

import json
import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

CHANNELS = (32, 64, 128)
# the rate falls by a tenth every 22 steps, whatever the number of epochs: a run can be resumed with more of them
optimizer = optax.adam(optax.exponential_decay(3e-3, transition_steps=22, decay_rate=0.9))


class Model(NamedTuple):
    """All that training changes."""

    params: dict[str, Array]
    optimizer: optax.OptState


def new_model(channels: int = 1, classes: int = 10, seed: int = 0) -> Model:
    """Three 3x3 convolutions, each halving the picture, and one dense layer."""
    keys = jax.random.split(jax.random.key(seed), len(CHANNELS) + 1)
    params: dict[str, Array] = {}
    for layer, (before, after) in enumerate(pairwise((channels, *CHANNELS))):
        scale = np.sqrt(2 / (9 * before))
        params[f"conv{layer}"] = scale * jax.random.normal(keys[layer], (3, 3, before, after))
        params[f"bias{layer}"] = jnp.zeros(after)
    inputs = 4 * 4 * CHANNELS[-1]
    params["dense"] = jax.random.normal(keys[-1], (inputs, classes)) / np.sqrt(inputs)
    params["bias"] = jnp.zeros(classes)
    return Model(params, optimizer.init(params))


def logits(params: dict[str, Array], image: Array) -> Array:
    # the loader hands over bytes, a quarter of what floats would take; they become floats here, on the device
    x = image.astype(jnp.float32) / 127.5 - 1
    for layer in range(len(CHANNELS)):
        x = jax.lax.conv_general_dilated(
            x, params[f"conv{layer}"], window_strides=(2, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[f"bias{layer}"])
    return x.reshape(len(x), -1) @ params["dense"] + params["bias"]


@partial(jax.jit, donate_argnums=0)
def train_step(model: Model, image: Array, label: Array) -> tuple[Model, Array]:
    """One step of Adam; returns the new model and the loss."""

    def loss_of(params: dict[str, Array]) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, image), label).mean()

    loss, gradients = jax.value_and_grad(loss_of)(model.params)
    updates, state = optimizer.update(gradients, model.optimizer)
    return Model(optax.apply_updates(model.params, updates), state), loss


@jax.jit
def right_answers(model: Model, image: Array, label: Array, valid: Array) -> Array:
    """How many of the rows that count are classified rightly."""
    return jnp.sum((logits(model.params, image).argmax(axis=1) == label) & valid)


def save(path: Path, model: Model, notes: dict[str, Any]) -> None:
    """Write the model's arrays and some JSON to one file, without pickle, and never half of it."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(model)]
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, *leaves, notes=np.array(json.dumps(notes)))
    os.replace(unfinished, path)


def restore(path: Path, like: Model) -> tuple[Model, dict[str, Any]]:
    """The way back from `save`, into a model of the same shapes."""
    with np.load(path, allow_pickle=False) as file:
        leaves = [jnp.asarray(file[f"arr_{number}"]) for number in range(len(jax.tree.leaves(like)))]
        notes = json.loads(str(file["notes"]))
    if [leaf.shape for leaf in leaves] != [np.shape(leaf) for leaf in jax.tree.leaves(like)]:
        raise SystemExit(f"{path} is of another model: give the same --data as then, or another --workdir")
    return jax.tree.unflatten(jax.tree.structure(like), leaves), notes
