"""What the cluster example trains on: numbers made from an item's index. Workers import this, and it imports no jax."""

import numpy as np

FEATURES = 16
ITEMS = 4_096

ARRAYS = {"x": ((FEATURES,), np.float32, np.float32), "y": ((), np.float32, np.float32)}

TRUTH = np.random.default_rng(0).normal(size=FEATURES).astype(np.float32)


def load(item, arrays, seed):
    """Fills in one example: features that belong to the item, and noise that is drawn anew in each epoch."""
    arrays["x"][...] = np.random.default_rng(item).normal(size=FEATURES)
    noise = np.random.default_rng(seed).normal(scale=0.1)
    arrays["y"][...] = np.tanh(arrays["x"] @ TRUTH) + noise
