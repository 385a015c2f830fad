"""Finding the loader that `module:name` names, and having it begin where it is wanted."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, cast

from hydrax_gpu.loader import Dataloader

__all__ = ["PreviewError", "find", "read_state", "resolve"]


class PreviewError(Exception):
    """The command cannot do what it was asked for; the message is for whoever typed it."""


def resolve(target: str) -> object:
    """The object that `module:name` or `file.py:name` names. The module is imported, and so are its own modules.

    Raises:
        PreviewError: there is no such module, file or name. What importing it raises by itself is passed on.
    """
    module, colon, name = target.rpartition(":")
    if not colon or not module or not name:
        raise PreviewError(f"got {target!r}, wanted module:name or file.py:name, such as train:loader")
    if module.endswith(".py"):
        path = os.path.abspath(module)
        if not os.path.isfile(path):
            raise PreviewError(f"there is no file {module}")
        folder, module = os.path.dirname(path), os.path.basename(path)[:-3]
    else:
        folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # workers are given the path, and import from there too
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise PreviewError(f"there is no module {error.name!r} in {folder}, nor where Python looks otherwise") from None
    for part in name.split("."):
        if not hasattr(found, part):
            names = cast("dict[str, object]", vars(found))
            loaders = [key for key, value in names.items() if isinstance(value, Dataloader)]
            hint = f"; it has the loaders {', '.join(loaders)}" if loaders else ""
            raise PreviewError(f"{module} has nothing called {part!r}{hint}")
        found = getattr(found, part)
    return found


def find(target: str, start_at: tuple[int, int] | Mapping[str, Any] | None) -> Dataloader[Any]:
    """The loader that `target` names, made to begin at `start_at` if that is not None.

    Args:
        target: of a `Dataloader` that has not run, or of a function without required parameters that makes one.
        start_at: as of `Dataloader`.

    Raises:
        PreviewError: it names something else, or `start_at` is not of this loader.
    """
    found = resolve(target)
    if not isinstance(found, Dataloader) and callable(found):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise PreviewError(f"{target} cannot be called without arguments: {error}") from None
        found = found()
    if not isinstance(found, Dataloader):
        raise PreviewError(
            f"{target} is a {type(found).__name__}, wanted a Dataloader, or a function that makes one. A loader that "
            "is made under `if __name__ == '__main__':` is not there when the module is imported: put it into a "
            "function, and call that in both places."
        )
    loader = cast("Dataloader[Any]", found)
    if start_at is not None:
        try:
            _begin_at(loader, start_at)
        except (ValueError, TypeError, RuntimeError) as error:
            raise PreviewError(f"{target}: {error}") from None
    return loader


def read_state(path: str) -> dict[str, Any]:
    """What `Dataloader.state()` returned, from a file of JSON.

    Raises:
        PreviewError: the file cannot be read, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
    except OSError as error:
        raise PreviewError(f"the state cannot be read: {error}") from None
    except ValueError as error:
        raise PreviewError(f"{path} is not JSON ({error}); wanted what json.dump(loader.state(), file) wrote") from None
    if not isinstance(state, dict):
        raise PreviewError(f"{path} holds a {type(state).__name__}, wanted the dict that loader.state() returns")
    return cast("dict[str, Any]", state)


def _begin_at(loader: Dataloader[Any], start_at: tuple[int, int] | Mapping[str, Any]) -> None:
    """Has a loader begin elsewhere than it was constructed to.

    Raises:
        TypeError, ValueError, StateMismatch: as by the constructor.
        RuntimeError: the loader has begun.
    """
    if loader._entered_ns:  # pyright: ignore[reportPrivateUsage]
        raise RuntimeError("the loader was entered before: it has begun")
    loader._begin(start_at)  # pyright: ignore[reportPrivateUsage]
