"""DALI graphs for the tests' workers, which import this module: so it must not import jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types as types
from nvidia.dali import Pipeline, pipeline_def


class Photo(NamedTuple):
    """A named tuple as a descriptor."""

    image: Any
    label: int


@dataclass
class Picture:
    """A dataclass as a descriptor."""

    image: Any
    label: int


def augment(sample: Any) -> dict[str, Any]:
    """Random crop by ROI, resize to 24 x 32, random flip and brightness; validation resizes only."""
    if sample.training:
        extent = sample.random.uniform((0.3, 1.0), shape=2)
        start = sample.random.uniform((0.0, 1.0), shape=2) * (1 - extent)
        image = fn.decoders.image_slice(sample.image, start, extent, axis_names="HW")
        image = fn.resize(image, size=(24, 32))
        image = fn.flip(image, horizontal=sample.random.coin_flip())
        image = fn.brightness_contrast(image, brightness=sample.random.uniform((0.5, 1.5)))
    else:
        image = fn.resize(fn.decoders.image(sample.image), size=(24, 32))
    return {"image": image, "label": sample.label}


def draws(sample: Any) -> dict[str, Any]:
    """Nothing but random numbers."""
    random = sample.random
    return {
        "uniform": random.uniform((2.0, 5.0)),
        "corner": random.uniform(shape=(2, 3)),
        "flip": random.coin_flip(0.25),
        "normal": random.normal(10.0, 2.0, shape=4),
        "index": random.choice(10),
        "value": random.choice([2.5, 7.5, 9.5], p=[0.5, 0.0, 0.5]),
        "even": random.uniform(values=[2, 4, 6], dtype="int16"),
        "data": fn.cast(sample.data, dtype=types.INT64),
    }


def decode(sample: Any) -> Any:
    """Decodes an image and resizes it to 16 x 16."""
    return fn.resize(fn.decoders.image(sample.data), size=(16, 16))


def decode_only(sample: Any) -> Any:
    """Decodes an image as large as it is."""
    return fn.decoders.image(sample.data)


def passes(sample: Any) -> dict[str, Any]:
    """The fields as they are."""
    return {"image": sample.image, "label": sample.label}


def doubled(sample: Any) -> Any:
    """Twice the number."""
    return sample.data * 2


def ragged(sample: Any) -> dict[str, Any]:
    """An array of varying length, and the length."""
    return {"values": sample.data, "length": sample.data.shape()[0]}


def audio(sample: Any) -> dict[str, Any]:
    """Decodes and gives the rate, too."""
    wave, rate = fn.decoders.audio(sample.data, dtype=types.INT16, downmix=True)
    return {"wave": wave, "rate": rate, "length": wave.shape()[0]}


def video(sample: Any) -> dict[str, Any]:
    """Decodes all frames and tells how many there were, beside their time stamps."""
    frames = fn.decoders.video(sample.video, device="cpu")
    return {"frames": frames, "count": frames.shape()[0], "times": sample.times}


def time_stamps(path: str) -> Any:
    """The time at which each frame of a video is to be shown, in seconds, float32, from the packets' headers."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        times = [float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None and p.time_base]
    return np.array(sorted(times), np.float32)


def dali_random(sample: Any) -> Any:
    """Draws by DALI's own operator."""
    return sample.data + fn.random.uniform(range=(0.0, 1.0))


def dali_noise(sample: Any) -> Any:
    """Adds DALI's own noise."""
    return fn.noise.gaussian(fn.decoders.image(sample.data), stddev=10)


def dali_crop(sample: Any) -> Any:
    """Crops by DALI's own choice."""
    return fn.decoders.image_random_crop(sample.data)


def dali_reader(sample: Any) -> Any:
    """Reads files by itself."""
    return fn.readers.file(files=["a", "b"])[0]


def own_source(sample: Any) -> Any:
    """Has an external source of its own."""
    return fn.external_source(name="mine") + sample.data


def mixes(sample: Any) -> Any:
    """Takes other samples of its batch."""
    return fn.permute_batch(sample.data, indices=[0])


def normalizes(sample: Any) -> Any:
    """Takes mean and deviation over the batch."""
    return fn.normalize(fn.cast(sample.data, dtype=types.FLOAT), batch=True)


def draws_in_validation(sample: Any) -> Any:
    """Forgets to ask what it is for."""
    return sample.data + sample.random.uniform()


def forgets_an_array(sample: Any) -> dict[str, Any]:
    """Returns too little and too much."""
    return {"image": sample.image, "lable": sample.label}


def misspells(sample: Any) -> Any:
    """Asks for a field that there is not."""
    return sample.picture


def no_node(sample: Any) -> dict[str, Any]:
    """Returns a text."""
    return {"image": sample.image, "label": "a label"}


def image_as_float(sample: Any) -> dict[str, Any]:
    """Another dtype than declared."""
    return {"image": fn.cast(decode_field(sample), dtype=types.FLOAT), "label": sample.label}


def decode_field(sample: Any) -> Any:
    """The resized image."""
    return fn.resize(fn.decoders.image(sample.image), size=(24, 32))


@pipeline_def
def plain_pipeline() -> Any:
    """A user's own pipeline."""
    jpegs = fn.external_source(name="jpegs")
    labels = fn.external_source(name="labels")
    return fn.resize(fn.decoders.image(jpegs), size=(24, 32)), labels


@pipeline_def
def random_pipeline() -> Any:
    """A pipeline with random numbers of DALI's."""
    jpegs = fn.external_source(name="jpegs")
    image = fn.resize(fn.decoders.image(jpegs), size=(24, 32))
    return fn.brightness(image, brightness=fn.random.uniform(range=(0.5, 1.5))), fn.external_source(name="labels")


@pipeline_def
def reading_pipeline() -> Any:
    """A pipeline that reads files by itself."""
    image, label = fn.readers.file(files=["a.jpg"], labels=[0])
    return image, label


def augment_there(sample: Any) -> dict[str, Any]:
    """As `augment`, on a GPU where there is one; the label stays on the host."""
    if sample.training:
        extent = sample.random.uniform((0.3, 1.0), shape=2)
        start = sample.random.uniform((0.0, 1.0), shape=2) * (1 - extent)
        image = fn.decoders.image_slice(sample.image, start, extent, axis_names="HW", device=sample.mixed)
        image = fn.resize(image, size=(24, 32))
        image = fn.flip(image, horizontal=sample.random.coin_flip())
        image = fn.brightness_contrast(image, brightness=sample.random.uniform((0.5, 1.5)))
    else:
        image = fn.resize(fn.decoders.image(sample.image, device=sample.mixed), size=(24, 32))
    return {"image": image, "label": fn.cast(sample.label, dtype=types.INT32)}


def augment_here(sample: Any) -> dict[str, Any]:
    """Decodes and resizes on the CPU, wherever the rest would run."""
    image = fn.resize(fn.decoders.image(sample.image), size=(24, 32))
    return {"image": image, "label": fn.cast(sample.label, dtype=types.INT32)}


def only_there(sample: Any) -> dict[str, Any]:
    """For a GPU alone."""
    image = fn.resize(fn.decoders.image(sample.image, device="mixed"), size=(24, 32))
    return {"image": image, "label": sample.label}


def as_large_as_it_is(sample: Any) -> dict[str, Any]:
    """Decodes an image as large as it is, on a GPU where there is one."""
    image = fn.decoders.image(sample.image, device=sample.mixed)
    return {"image": image, "label": fn.cast(sample.label, dtype=types.INT32)}


def spread(sample: Any) -> dict[str, Any]:
    """A number, 16 times."""
    return {"x": fn.copy(fn.stack(*[sample.x] * 16), device=sample.device), "y": sample.y}


@pipeline_def
def as_it_is() -> Any:
    """A pipeline for a CPU or a GPU, as it is asked for."""
    device = "cpu" if Pipeline.current().device_id is None else "mixed"
    image = fn.decoders.image(fn.external_source(name="image", no_copy=True), device=device)
    label = fn.external_source(name="label", no_copy=True)
    return fn.resize(image, size=(24, 32)), fn.cast(label, dtype=types.INT32)


def for_gpu() -> Pipeline:
    """A pipeline object for GPU 0, which can be defined without one."""
    return as_it_is(batch_size=8, num_threads=1, device_id=0)


def other_there(sample: Any) -> dict[str, Any]:
    """Looks at another field on a GPU than on the CPU."""
    label = fn.cast(sample.label, dtype=types.INT32)
    if sample.device == "cpu":
        return {"image": fn.reshape(label, shape=[1]), "label": label}
    return {"image": fn.cast(sample.image.shape(), dtype=types.INT32), "label": label}
