"""The two pictures of the demo."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("agg")  # files only, no window
from matplotlib import pyplot


def contact_sheet(path: Path, images: NDArray[Any], labels: NDArray[Any], title: str, columns: int = 8) -> None:
    """Draw a whole batch, each item with its label in its corner."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * height, columns * width, channels), np.uint8)
    figure, axes = pyplot.subplots(figsize=(columns, rows + 0.4), layout="constrained")
    for item in range(count):
        y, x = (item // columns) * height, (item % columns) * width
        sheet[y : y + height, x : x + width] = images[item]
        axes.text(x + 1, y + 1, str(labels[item]), color="gold", va="top", family="monospace", weight="bold")
    axes.imshow(sheet[..., 0] if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title)
    axes.axis("off")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def curves(path: Path, accuracy: list[float], waits: list[float], goal: float | None) -> None:
    """Draw how well the model did, and how long it was kept waiting for data, epoch by epoch."""
    epochs = range(1, len(accuracy) + 1)
    figure, (above, below) = pyplot.subplots(2, figsize=(7, 6), sharex=True, layout="constrained")
    above.plot(epochs, [100 * value for value in accuracy], "o-", color="tab:blue")
    if goal is not None:
        above.axhline(100 * goal, color="gray", linestyle=":", label=f"goal, {goal:.0%}")
    above.set_ylabel("validation accuracy, %")
    if goal is not None:
        above.legend(loc="lower right")
    below.bar(epochs, [1000 * value for value in waits], color="tab:orange")
    below.set_ylabel("time waiting for data, ms")
    below.set_xlabel("epoch")
    below.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
