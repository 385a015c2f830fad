"""The least that a script with a batch must do: import, fill a batch, put it on the device."""

import time

import jax
import numpy as np

from benchmarks.accounts import emit

if __name__ == "__main__":
    image = np.empty((64, 8, 8, 3), np.uint8)
    label = np.empty((64,), np.int32)
    for item in range(64):
        image[item] = item & 255
        label[item] = item
    jax.block_until_ready((jax.device_put(image), jax.device_put(label)))
    emit({"done_at": time.monotonic()})
