"""Sound and moving pictures through DALI's decoders, from files that are made here."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "nvidia.dali", exc_type=ImportError, reason="NVIDIA DALI cannot be imported here: it has no wheel for this platform"
)

from hydrax_gpu import DataGroup
from hydrax_gpu.loaders import DaliLoader
from tests import dali_graphs as graphs
from tests.small import loader

RATE = 8000


def samples(number: int, seconds: float) -> Any:
    """A sweep, int16, of one channel."""
    t = np.arange(round(RATE * seconds)) / RATE
    return (20_000 * np.sin(2 * np.pi * (200 + 50 * number + 100 * t) * t)).astype(np.int16)


def test_sound_of_two_seconds_is_what_it_was(tmp_path: Path) -> None:
    seconds = [2.0, 1.5, 0.25]
    for number, each in enumerate(seconds):
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(samples(number, each).tobytes())
    arrays = {
        "wave": ((2 * RATE,), np.int16, np.int16),
        "length": ((), np.int64, np.int32),
        "rate": ((), np.float32, np.float32),
    }
    group = DataGroup(3, [str(tmp_path / f"{number}.wav") for number in range(3)], loader_arrays=arrays)
    load = DaliLoader(graphs.audio, pad={"wave": 0})
    with loader(load, group, executor="process", on_error="raise") as it:
        (batch,) = list(it)
        assert batch.arrays["rate"].tolist() == [RATE] * 3
        assert batch.arrays["length"].tolist() == [16_000, 12_000, 2_000]
        for number, each in enumerate(seconds):
            expected = np.zeros(2 * RATE, np.int16)
            expected[: round(RATE * each)] = samples(number, each)
            assert (np.asarray(batch.arrays["wave"][number]) == expected).all()
        del batch


HEIGHT, WIDTH, FRAMES = 48, 64, 50


def make_video(path: Path, ticks: list[int]) -> None:
    """A video whose picture grows lighter by 5 with each frame. Frame i is shown `ticks[i]` / 25 s after the start."""
    av = pytest.importorskip("av", reason="the video is made by PyAV, which cannot be imported here")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_frames_of_a_video_of_two_seconds_come_all_and_in_time(tmp_path: Path) -> None:
    steady = list(range(FRAMES))
    uneven = [tick + tick // 10 for tick in range(40)]  # every tenth step is twice as long
    for name, ticks in (("steady", steady), ("uneven", uneven)):
        make_video(tmp_path / f"{name}.webm", ticks)
    arrays = {
        "frames": ((FRAMES, HEIGHT, WIDTH, 3), np.uint8, np.uint8),
        "count": ((), np.int64, np.int32),
        "times": ((FRAMES,), np.float32, np.float32),
    }
    paths = [str(tmp_path / f"{name}.webm") for name in ("steady", "uneven")]
    group = DataGroup(2, [{"video": path, "times": path} for path in paths], loader_arrays=arrays)
    load = DaliLoader(graphs.video, read={"times": graphs.time_stamps}, pad={"frames": 0, "times": -1})
    with loader(load, group, executor="process", on_error="raise") as it:
        batch = next(it)
        assert batch.arrays["count"].tolist() == [FRAMES, 40]
        for row, ticks in enumerate((steady, uneven)):
            light = np.asarray(batch.arrays["frames"])[row, :, 10:-10, 10:-10].mean(axis=(1, 2, 3))
            assert np.abs(light[: len(ticks)] - 5 * np.arange(len(ticks))).max() < 3, "each frame once, in order"
            assert not light[len(ticks) :].any()
            times = np.asarray(batch.arrays["times"])[row]
            assert np.abs(times[: len(ticks)] - np.array(ticks) / 25).max() < 1e-3
            assert (times[len(ticks) :] == -1).all()
        assert np.asarray(batch.arrays["times"])[0, -1] == pytest.approx(49 / 25)
        del batch
