"""Whether the processes of a job agree: the first field in which two states differ, by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from hydrax_gpu.errors import StatesDiffer

__all__ = ["require_equal"]

_ABSENT = "absent"


def require_equal(first: object, other: object, process: int, path: str = "") -> None:
    """Compares what process 0 and another have, JSON both, leaf by leaf.

    Raises:
        StatesDiffer: they are not the same; names the first leaf that differs, in the order of `first`.
    """
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        mine, theirs = cast("Mapping[str, object]", first), cast("Mapping[str, object]", other)
        for name in {**mine, **theirs}:
            where = f"{path}.{name}" if path else name
            if name not in mine or name not in theirs:
                raise StatesDiffer(where, mine.get(name, _ABSENT), theirs.get(name, _ABSENT), process)
            require_equal(mine[name], theirs[name], process, where)
    elif isinstance(first, list | tuple) and isinstance(other, list | tuple):
        ours, others = cast("Sequence[object]", first), cast("Sequence[object]", other)
        if len(ours) != len(others):
            raise StatesDiffer(f"number of {path}", len(ours), len(others), process)
        for index, (mine, theirs) in enumerate(zip(ours, others, strict=True)):
            require_equal(mine, theirs, process, f"{path}[{index}]")
    # 1 == True == 1.0 in Python, and none of them stands for another in a state
    elif type(cast("object", first)) is not type(other) or first != other:
        raise StatesDiffer(path, cast("object", first), other, process)
