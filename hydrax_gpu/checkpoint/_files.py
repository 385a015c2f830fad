"""A state as a JSON file that is there completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydrax_gpu._plan import STATE_VERSION
from hydrax_gpu.checkpoint._agreement import agreed_reading, agreed_state, exchange, process_index
from hydrax_gpu.loader import Dataloader, State

__all__ = ["load_json", "parsed", "save_json", "write_whole"]


def save_json(path: str | os.PathLike[str], loader: Dataloader[Any] | Mapping[str, Any]) -> State:
    """Saves where a loader stands to a JSON file, in place of an older one in one step.

    A crash, at whatever moment, leaves the older file or the new one. In a job of several processes, all of them call
    it after the same batch, with a path on a file system that they share; process 0 writes, and all return when the
    file is there.

    Args:
        path: of the file; its folder must exist.
        loader: a `Dataloader`, or what its `state()` returned.

    Returns:
        The state that was saved: that of the job.

    Raises:
        StatesDiffer: the processes are at different batches, or have other data.
        OSError: the file cannot be written; on all processes.
        TypeError, ValueError: `loader` is neither a loader nor a state.
    """
    state = agreed_state(loader)
    problem: OSError | None = None
    if process_index() == 0:
        try:
            write_whole(Path(path), state)
        except OSError as error:
            problem = error
    # Nobody may go on as if it had been saved, nor wait for a process that has given up.
    outcome = exchange(str(problem).encode() if problem is not None else b"")[0]
    if problem is not None:
        raise problem
    if outcome:
        raise OSError(f"process 0 could not save the state: {outcome.decode()}")
    return state


def load_json(path: str | os.PathLike[str]) -> State:
    """Reads what `save_json` wrote, for `Dataloader(start_at=...)`.

    In a job of several processes, all of them call it; that they have read the same is checked.

    Raises:
        OSError: the file cannot be read, on this process or on another.
        ValueError: it is no state of a loader, or of another version.
        StatesDiffer: the processes have read different states.
    """
    where = os.fspath(path)
    return agreed_reading(lambda: parsed(Path(path).read_bytes(), where), where)


def parsed(text: bytes, where: str) -> State:
    """The state in a file's text.

    Raises:
        ValueError: it is none.
    """
    advice = "Was it saved with hydrax_gpu.checkpoint?"
    try:
        state: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}). {advice}") from error
    if not isinstance(state, dict) or "version" not in state or "fingerprint" not in state:
        raise ValueError(
            f"{where} holds no state of a loader: wanted a dict with 'version' and 'fingerprint'. {advice}"
        )
    if state["version"] != STATE_VERSION:
        raise ValueError(
            f"{where} has a state of version {state['version']!r}, but this release reads version {STATE_VERSION}. "
            "Resume with the release that wrote it."
        )
    return cast("State", state)


def write_whole(target: Path, state: Mapping[str, Any]) -> None:
    """Writes a state to a file that has its name only when all of it is on the disk.

    Raises:
        OSError: it cannot be written; an older file is as it was.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)
