"""The command: the table and the verdict of a trace, and its picture."""

from __future__ import annotations

from pathlib import Path

from hydrax_gpu._timeline.drawing import draw
from hydrax_gpu._timeline.reading import TraceError, read
from hydrax_gpu._verdict import verdict

__all__ = ["report"]


def report(path: str, *, output: str | None = None, begin: float = 0.0, length: float | None = None) -> tuple[int, str]:
    """Says what a trace tells.

    Args:
        path: file that a loader has written because of `trace=`.
        output: image file for a picture of it.
        begin: second at which that is to begin.
        length: seconds that it is to show; None for all.

    Returns:
        The process's exit status, 0 or 1, and what to print.
    """
    try:
        recording = read(Path(path))
        stages = recording.stages()
        text = verdict(stages, executor=recording.executor, depth=recording.depth, cores=recording.cores)
        page = f"{recording.workers} x {recording.executor}, depth {recording.depth}: {stages.batches} batches, "
        page += f"{stages.items} items in {stages.seconds:.2f} s since the first batch\n\n"
        page += (f"{stages}\n\n" if stages.stages else "") + text
        if output is not None:
            draw(Path(output), recording, text, begin_s=begin, length_s=length)
            page += f"\n{output}: {len(recording.events)} events"
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        return 1, "a picture needs matplotlib: pip install 'hydrax-gpu[plot]', or leave -o out"
    except TraceError as error:
        return 1, str(error)
    except (OSError, ValueError) as error:  # of reading, and of writing the picture
        return 1, f"{type(error).__name__}: {error}"
    return 0, page
