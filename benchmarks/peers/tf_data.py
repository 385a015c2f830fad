"""tf.data, by TensorFlow's own operators.

Settings: those of its performance guide: `map` in parallel, cheap functions vectorised (`batch` before `map`),
`prefetch`; a private pool with as many threads as items are to be loaded at once, one thread within an operator. It
calls no Python function, so what it loads is what TensorFlow has operators for: no other loader here has it as easy
with tiny items.

For photographs, its operator that decodes a part of a JPEG and its bilinear resize. The parts are drawn before: its own
operator for that (`sample_distorted_bounding_box`) draws smaller ones, and would make it do less.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..photo_work import PASSES, SIZE, boxes
from ..workloads import MEAN, STD
from .base import Arrays, Peer


class TensorFlow(Peer):
    """A pipeline for each kind of task."""

    module = "tensorflow"
    packages = ("tensorflow-cpu", "tensorflow")
    settings = "native operators, no Python function; private thread pool, vectorised where cheap, prefetch(depth)"
    by_function = False

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        dataset = getattr(self, f"_{task.name}")(tf, task)
        options = tf.data.Options()
        options.threading.private_threadpool_size = task.workers
        options.threading.max_intra_op_parallelism = 1
        options.deterministic = True
        yield dataset.prefetch(task.depth).with_options(options).as_numpy_iterator()

    def _items(self, tf: Any, task: Any) -> Any:
        shape = task.arrays["image"][0]

        def fill(numbers: Any) -> Arrays:
            values = tf.cast(numbers & 255, tf.uint8)[:, None, None, None]
            return {"image": tf.tile(values, [1, *shape]), "label": tf.cast(numbers, tf.int32)}

        dataset = tf.data.Dataset.range(len(task.data)).repeat().batch(task.batch, drop_remainder=True)
        return dataset.map(fill, num_parallel_calls=task.workers)

    def _bytes(self, tf: Any, task: Any) -> Any:
        def view(record: Any) -> Arrays:
            return {"image": tf.reshape(tf.io.decode_raw(record, tf.uint8), task.record)}

        dataset = tf.data.FixedLengthRecordDataset(str(task.file), int(np.prod(task.record))).repeat()
        return dataset.map(view, num_parallel_calls=task.workers).batch(task.batch, drop_remainder=True)

    def _records(self, tf: Any, task: Any) -> Any:
        def normalize(number: Any, record: Any) -> Arrays:
            pixels = tf.cast(tf.reshape(tf.io.decode_raw(record, tf.uint8), task.record), tf.float32)
            return {"image": (pixels - MEAN) * (1 / STD), "label": tf.cast(number, tf.int32)}

        records = tf.data.FixedLengthRecordDataset(str(task.file), int(np.prod(task.record)))
        dataset = tf.data.Dataset.zip((tf.data.Dataset.range(len(task.data)), records)).repeat()
        return dataset.map(normalize, num_parallel_calls=task.workers).batch(task.batch, drop_remainder=True)

    def _photos(self, tf: Any, task: Any) -> Any:
        def item(path: Any, index: Any, box: Any) -> Arrays:
            x, y, w, h, flip = tf.unstack(box)
            part = tf.image.decode_and_crop_jpeg(
                tf.io.read_file(path), tf.stack([y, x, h, w]), channels=3, dct_method="INTEGER_ACCURATE"
            )
            pixels = tf.image.resize(part, [SIZE, SIZE])  # bilinear, without antialiasing, float32
            pixels = tf.cond(flip > 0, lambda: tf.reverse(pixels, [1]), lambda: pixels)
            return {"image": tf.cast(pixels + 0.5, tf.uint8), "index": index, "box": box}

        numbers = np.tile(np.arange(len(task.data), dtype=np.int32), PASSES)
        fields = (list(task.data) * PASSES, numbers, boxes(task.data * PASSES))
        dataset = tf.data.Dataset.from_tensor_slices(fields).repeat()
        return dataset.map(item, num_parallel_calls=task.workers).batch(task.batch, drop_remainder=True)
