"""A trace as a picture: a row for each track, and below it what the slots were at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydrax_gpu._stages import Part
from hydrax_gpu._timeline.reading import Event, Recording

__all__ = ["draw"]

_COLOURS = {
    "step": "#2e7d32",
    "wait": "#c62828",
    "read": "#4fc3f7",
    "load": "#1565c0",
    "decode": "#6a1b9a",
    "plan": "#ef6c00",
    "send": "#ffb300",
    "place": "#00838f",
    "fence": "#8d6e63",
    "copy": "#7cb342",
}
_SLOTS = ("#e0e0e0", "#90caf9", "#1565c0", "#a5d6a7", "#2e7d32", "#7cb342")


def draw(path: Path, recording: Recording, title: str, *, begin_s: float, length_s: float | None) -> None:
    """Draws a stretch of a trace into an image file, of the format that its name ends with.

    Args:
        path: of the file.
        recording: the trace.
        title: of the picture; wrapped.
        begin_s: where the stretch begins, in seconds since the first event.
        length_s: how long it is; None for the rest.

    Raises:
        ImportError: there is no matplotlib.
        OSError, ValueError: the file cannot be written, or its ending names no format.
    """
    import textwrap

    import matplotlib

    matplotlib.use("agg")  # files only, no window
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    spans = [event for event in recording.events if event.kind == "X"]
    zero = min((event.begin for event in spans), default=0)
    begin = zero + int(1e9 * begin_s)
    end = max((event.end for event in spans), default=zero + 1)
    if length_s is not None:
        end = min(end, begin + int(1e9 * length_s))
    used = {(event.pid, event.track) for event in spans}
    rows = sorted(used, key=lambda key: (key[0] != recording.pid, key[1], key[0]))
    place = {key: index for index, key in enumerate(rows)}
    figure, (upper, lower) = pyplot.subplots(
        2,
        1,
        sharex=True,
        figsize=(14, 2.6 + 0.42 * len(rows)),
        height_ratios=(max(2, len(rows)), 3),
        layout="constrained",
    )
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for event in spans:
        if event.end < begin or event.begin > end:
            continue
        for name, start, stop in _pieces(event):
            bar = ((start - zero) / 1e9, (stop - start) / 1e9)
            bars.setdefault((place[event.pid, event.track], name), []).append(bar)
    for (row, name), pieces in bars.items():
        upper.broken_barh(pieces, (row - 0.4, 0.8), facecolors=_COLOURS.get(name, "#777777"))
    upper.set_yticks(range(len(rows)), [_label(recording, key) for key in rows])
    upper.invert_yaxis()
    upper.set_title("\n".join(textwrap.wrap(title, 130)), fontsize="medium", loc="left")
    names = [name for name in _COLOURS if any(name == used for _, used in bars)]
    upper.legend(
        handles=[Patch(color=_COLOURS[name], label=name) for name in names], loc="upper left", bbox_to_anchor=(1, 1)
    )
    _draw_slots(lower, recording, zero, end)
    lower.set_xlim((begin - zero) / 1e9, (end - zero) / 1e9)
    lower.set_xlabel("seconds")
    try:
        figure.savefig(path, dpi=110)  # pyright: ignore[reportUnknownMemberType]
    finally:
        pyplot.close(figure)


def _pieces(event: Event) -> list[tuple[str, int, int]]:
    """A chunk's decoding comes after its loading, and is drawn there."""
    decode = int(1e3 * event.args.get("decode_us", 0))
    if not decode:
        return [(event.name, event.begin, event.end)]
    return [(event.name, event.begin, event.end - decode), ("decode", event.end - decode, event.end)]


def _draw_slots(axes: Any, recording: Recording, zero: int, end: int) -> None:
    levels = [event for event in recording.events if event.kind == "C" and event.name == "slots"]
    times = [(event.begin - zero) / 1e9 for event in levels] + [(end - zero) / 1e9]
    parts = [part.name.lower() for part in Part]
    values = [[event.args[part] for event in levels] for part in parts]
    if levels:
        stacked = [[*each, each[-1]] for each in values]
        axes.stackplot(times, *stacked, labels=parts, colors=_SLOTS, step="post")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_ylabel("slots")
    axes.set_ylim(0, recording.depth)


def _label(recording: Recording, key: tuple[int, int]) -> str:
    name = recording.tracks.get(key, f"thread {key[1]}")
    return name if key[0] == recording.pid else f"{name} (process {key[0]})"
