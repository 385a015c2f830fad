"""The pictures of a run: its timeline as `hydrax-gpu report` draws it, and a contact sheet of `hydrax-gpu preview`.

    python docs/pictures/run.py    writes timeline.png and sheet.png beside itself

Needs Pillow and matplotlib (extras `image` and `plot`).
"""

import colorsys
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hydrax_gpu import DataGroup, Dataloader
from hydrax_gpu.loaders import ImageLoader

SIDE = 16


class Slow(ImageLoader):
    """Pictures that take some time each, as large ones do."""

    def __call__(self, item, arrays, seed):
        time.sleep(0.004)
        return super().__call__(item, arrays, seed)


def made_up(number: int) -> bytes:
    """A JPEG file of coloured stripes."""
    import io

    from PIL import Image

    y, x = np.mgrid[:90, :120] / 120
    turn = number * 0.7
    wave = 0.5 + 0.5 * np.sin(9 * (x * np.cos(turn) + y * np.sin(turn)))
    colours = np.array([colorsys.hsv_to_rgb((number / 12 + shift) % 1, 0.7, 0.95) for shift in (0, 0.33)])
    pixels = wave[..., None] * colours[0] + (1 - wave[..., None]) * colours[1]
    stream = io.BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def make_loader(**options) -> Dataloader:
    """What is previewed and traced: pictures in bytes, two threads."""
    load = Slow(SIDE, labels={"label": ((), np.int32, np.int32)})
    items = [(made_up(number), number) for number in range(48)]
    group = DataGroup(16, items, loader_arrays=load.arrays(), seed=1, shuffle_first=True)
    return Dataloader(load, group, executor="thread", loader_count=2, end_at=("epoch", 4), **options)


def main(folder: Path) -> None:
    """Writes them."""
    trace = folder / "run.json"
    with make_loader() as loader:  # what is only done once in a process, such as compiling, is of no interest here
        next(loader)
    with make_loader(trace=str(trace)) as loader:
        for batch in loader:
            time.sleep(0.02)  # the training step
            del batch
    command = [sys.executable, "-m", "hydrax_gpu"]
    here = Path(__file__).parent
    for arguments in (
        ["report", str(trace), "-o", str(folder / "timeline.png")],
        ["preview", "run:make_loader", "--batch", "1", "-o", str(folder / "sheet.png")],
    ):
        subprocess.run([*command, *arguments], check=True, cwd=here)
    trace.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
