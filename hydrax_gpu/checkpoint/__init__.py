"""Saving where a loader stands, beside the model: as plain JSON, or with Orbax (the `orbax` extra).

    manager.save(step, args=ocp.args.Composite(
        model=ocp.args.StandardSave(model), data=hydrax_gpu.checkpoint.Save(loader)))
    restored = manager.restore(step, args=ocp.args.Composite(
        model=ocp.args.StandardRestore(model), data=hydrax_gpu.checkpoint.Restore()))
    loader = Dataloader(..., start_at=restored.data)

    hydrax_gpu.checkpoint.save_json("run/data.json", loader)
    loader = Dataloader(..., start_at=hydrax_gpu.checkpoint.load_json("run/data.json"))

In a job of several processes (`jax.distributed`), all of them make each of these calls, at the same step. What is saved
is one state for the job: it is compared among the processes, and has the bad items that each of them has found. Any
number of processes can go on with it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hydrax_gpu.checkpoint._agreement import agreed_state as agreed_state
from hydrax_gpu.checkpoint._files import load_json as load_json
from hydrax_gpu.checkpoint._files import save_json as save_json

if TYPE_CHECKING:
    from hydrax_gpu.checkpoint._orbax import LoaderHandler as LoaderHandler
    from hydrax_gpu.checkpoint._orbax import Restore as Restore
    from hydrax_gpu.checkpoint._orbax import Save as Save

__all__ = ["LoaderHandler", "Restore", "Save", "agreed_state", "load_json", "save_json"]

_ORBAX = ("LoaderHandler", "Restore", "Save")


def __getattr__(name: str) -> Any:
    if name not in _ORBAX:
        raise AttributeError(f"module 'hydrax_gpu.checkpoint' has no attribute {name!r}")
    try:
        module = importlib.import_module("hydrax_gpu.checkpoint._orbax")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "orbax":
            raise
        raise ModuleNotFoundError(
            f"hydrax_gpu.checkpoint.{name} needs Orbax, which is not installed: pip install 'hydrax-gpu[orbax]'. "
            "save_json and load_json need nothing.",
            name=error.name,
        ) from error
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ORBAX})
