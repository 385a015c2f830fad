"""The loaders that are measured. A new one is a class (README, "Adding a peer") and a line in `PEERS`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from ..harness import ROOT, Case, target_case
from ..photo_work import DECODERS
from . import dali, ffcv, grain, hydrax, jax_dataloader, pytorch, spdl, tf_data
from .base import Arrays, Peer, make_batch, make_item, versions

__all__ = [
    "DECODE",
    "NAME",
    "NO_OPENCV",
    "OURS",
    "PEERS",
    "Arrays",
    "Chosen",
    "Peer",
    "cases",
    "choose",
    "make",
    "make_batch",
    "make_item",
    "versions",
]

NAME = "hydrax_gpu"
NO_OPENCV = "OpenCV is not installed (pip install opencv-python-headless)"
DECODE = "hydrax_gpu + decode"
OURS: dict[str, type[Peer]] = {NAME: hydrax.HydraxGpu, DECODE: hydrax.HydraxGpuDecode}
PEERS: dict[str, type[Peer]] = {
    "hydrax": hydrax.Hydrax,
    "DALI": dali.Dali,
    "DALI antialias": dali.DaliAntialias,
    "SPDL": spdl.Spdl,
    "Grain": grain.Grain,
    "Grain threads": grain.GrainThreads,
    "torch": pytorch.Torch,
    "jax-dataloader": jax_dataloader.JaxDataloader,
    "FFCV": ffcv.Ffcv,
    "tf.data": tf_data.TensorFlow,
}


@dataclass(frozen=True)
class Chosen:
    """A loader to measure: its name in the table, or "module:class" of one from elsewhere."""

    name: str
    module: str | None = None
    """A module with hydrax_gpu's interface, in its place."""
    python: str = sys.executable


def choose(module: str | None, peers: Sequence[str], pythons: Mapping[str, str]) -> list[Chosen]:
    """hydrax_gpu, and the peers with their interpreters; that of the name "" is for all that have none of their own.

    Raises:
        SystemExit: If an interpreter is meant for a peer that there is not.
    """
    if unknown := pythons.keys() - {"", *PEERS, *peers}:
        raise SystemExit(f"--python: no peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    others = pythons.get("", sys.executable)
    return [Chosen(NAME, module), *(Chosen(name, None, pythons.get(name, others)) for name in peers)]


def kind(name: str) -> type[Peer]:
    """The class of that name, or "module:class" of one from elsewhere."""
    if ":" in name:
        module, attribute = name.split(":")
        return getattr(import_module(module), attribute)
    return {**OURS, **PEERS}[name]


def make(name: str, module: str | None = None) -> Any:
    """The loader of that name, perhaps with another module that has its interface."""
    return kind(name)(module) if module else kind(name)()  # type: ignore[call-arg]


def cases(
    chosen: Sequence[Chosen],
    workload: str,
    target: str,
    *,
    env: Mapping[str, str] | None = None,
    jax: bool = True,
    memory: bool = False,
    **settings: Any,
) -> tuple[list[Case], dict[str, str]]:
    """A case for each that can be measured here, and for each other one the reason why not."""
    found: list[Case] = []
    left_out: dict[str, str] = {}
    for one in chosen:
        judged = one.name == NAME
        peer = kind(one.name)
        if workload not in peer.workloads and workload not in peer.unfit:
            continue
        reason = peer.unfit.get(workload) or absent(peer, one.python, one.module, jax=jax)
        if reason:
            left_out[one.name] = reason
            continue
        found.append(
            target_case(
                one.name,
                target,
                judged=judged,
                env=env,
                python=one.python,
                memory=memory,
                peer=not judged,
                subject=one.name,
                module=one.module,
                **settings,
            )
        )
    return found, left_out


def absent(peer: type[Peer], python: str, module: str | None = None, *, jax: bool = True) -> str | None:
    """What a peer needs and that interpreter has not, as a sentence; None if nothing."""
    for needed in (module or peer.module, *(("jax",) if jax else ())):
        if needed and not has_module(python, needed):
            return f"{needed} is not installed"
    return None


def lacks_decoder(python: str) -> str | None:
    """What a peer that decodes photographs by `photo_work.fast` needs and that interpreter has not."""
    if not has_module(python, "cv2"):
        return NO_OPENCV
    if not any(has_module(python, decoder) for decoder in DECODERS.values()):
        return f"none of {', '.join(DECODERS)} is installed"
    return None


@cache
def has_module(python: str, module: str) -> bool:
    """Whether that interpreter has the module; a parent package is imported for it, the module is not."""
    # a parent package that is missing is an exception, which is a no as well
    code = f"from importlib.util import find_spec; raise SystemExit(find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], capture_output=True, cwd=ROOT).returncode == 0
