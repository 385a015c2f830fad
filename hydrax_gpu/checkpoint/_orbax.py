"""The state of a loader as an item of an Orbax checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final

import orbax.checkpoint as ocp  # pyright: ignore[reportMissingTypeStubs]
from etils import epath  # pyright: ignore[reportMissingTypeStubs]
from orbax.checkpoint import future  # pyright: ignore[reportMissingTypeStubs]

from hydrax_gpu.checkpoint._agreement import agreed_reading, agreed_state, process_index, state_of
from hydrax_gpu.checkpoint._files import parsed
from hydrax_gpu.loader import Dataloader, State

__all__ = ["LoaderHandler", "Restore", "Save"]

_FILE = "hydrax_gpu.json"

# Orbax's own classes have metaclasses that a type checker cannot see through.
_Handler = object if TYPE_CHECKING else ocp.AsyncCheckpointHandler


@final
class LoaderHandler(_Handler):
    """Saves the state of a `Dataloader` and restores it. `CheckpointManager` finds it by `Save` and `Restore`.

    The state is a file `hydrax_gpu.json` of the item's folder, of some kilobytes, written by process 0.
    """

    async def async_save(self, directory: epath.Path, args: Save) -> list[future.Future] | None:
        """Takes the state now, and writes it when the manager does.

        Raises:
            StatesDiffer: the processes are at different batches, or have other data.
        """
        text = json.dumps(agreed_state(args.loader))

        async def write() -> None:
            # Orbax makes the folder beforehand and gives the checkpoint its name when all items are there, so that a
            # part of a file is never taken for one.
            if process_index() == 0:
                (epath.Path(directory) / _FILE).write_text(text + "\n")

        return [future.CommitFutureAwaitingContractedSignals(write(), name="hydrax_gpu_save")]

    def save(self, directory: epath.Path, args: Save) -> None:
        """As `async_save`, and waits for it."""
        text = json.dumps(agreed_state(args.loader))
        if process_index() == 0:
            (epath.Path(directory) / _FILE).write_text(text + "\n")

    def restore(self, directory: epath.Path, args: Restore | None = None) -> State:
        """The state, for `Dataloader(start_at=...)`; that all processes have read the same is checked.

        Raises:
            FileNotFoundError: this item of the checkpoint is not the state of a loader.
            ValueError: it is of another version, or damaged.
            StatesDiffer: the processes have read different states.
        """
        path = epath.Path(directory) / _FILE

        def read() -> State:
            if not path.exists():
                raise FileNotFoundError(
                    f"{directory} has no {_FILE}: this item of the checkpoint is not the state of a hydrax_gpu "
                    "loader. It must have been saved with hydrax_gpu.checkpoint.Save(loader), under the same name."
                )
            return parsed(path.read_bytes(), str(path))

        return agreed_reading(read, str(path))


def _is_state(loader: object) -> None:
    if not isinstance(loader, Dataloader):
        try:
            state_of(loader)
        except (TypeError, ValueError) as error:
            raise type(error)(f"hydrax_gpu.checkpoint.Save: {error}") from None


@ocp.args.register_with_handler(cast("Any", LoaderHandler), for_save=True)
@dataclass
class Save(ocp.args.CheckpointArgs):
    """What to save as an item of an Orbax checkpoint: where a loader stands when the manager's `save` is called.

    Attributes:
        loader: a `Dataloader`, or what its `state()` returned.

    Raises:
        TypeError, ValueError: it is neither.
    """

    loader: Dataloader[Any] | Mapping[str, Any]

    def __post_init__(self) -> None:
        _is_state(cast("object", self.loader))


@ocp.args.register_with_handler(cast("Any", LoaderHandler), for_restore=True)
@dataclass
class Restore(ocp.args.CheckpointArgs):
    """Restores what `Save` saved: the item is then a state, for `Dataloader(start_at=...)`."""
