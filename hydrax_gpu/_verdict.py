"""One sentence about a loader: which of its stages the training loop waits for, and what to do about it."""

from __future__ import annotations

import math
import os

from hydrax_gpu._stages import Stages

__all__ = ["at_storage_speed", "bound_by", "verdict"]

_ENOUGH = 0.05
"""A loop that waits for less than this share of its time is not limited by its loader."""

_RECENT_BATCHES = 8
"""Of fewer batches than this nothing is said."""

_BUSY = 0.6

_ASLEEP = 0.5
"""Workers that sleep for more than this share of their time wait for something, and do not compute."""

_PAGE = 4096
"""Of less than a page an item nobody waits for storage."""

_NAMES = {"load": "loader-bound", "held": "retained batches", "running": "consumer-bound"}


def bound_by(stages: Stages, depth: int) -> str:
    """What a loop is limited by: the name of a cause of `Stages.causes()`, or `step` for the loop itself."""
    causes = stages.causes()
    if stages.wait_share < _ENOUGH or not any(causes.values()):
        return "step"
    cause = max(causes, key=causes.__getitem__)
    # One batch is with the loop anyway. Workers that idle because the others' slots are kept leave it waiting for each
    # batch from the beginning.
    idle = cause in ("read", "load", "decode", "queue", "hand-over") and stages.busy_share < _BUSY
    return "held" if idle and stages.held_slots > max(0.5, min(1.5, depth - 1.5)) else cause


def verdict(stages: Stages, *, executor: str, depth: int, cores: int | None = None) -> str:
    """The sentence.

    Args:
        stages: what the time went into; lately, too, where that is known.
        executor: name of the executor.
        depth: number of slots.
        cores: processors that this process may run on; those of this machine by default.
    """
    if stages.batches < 1 or not stages.stages:
        return "too few batches to tell"
    lately = stages.recent if stages.recent is not None and stages.recent.batches >= _RECENT_BATCHES else stages
    cause, before = bound_by(lately, depth), bound_by(stages, depth)
    name, name_before = _name(cause, lately), _name(before, stages)
    text = _sentence(lately, cause, executor, depth, len(os.sched_getaffinity(0)) if cores is None else cores)
    if name_before != name:
        text += f" (the whole run: {name_before}, it waited {stages.wait_share:.0%} of the time)"
    return text


def at_storage_speed(stages: Stages, cause: str) -> bool:
    """Whether loading, if that is what a loop waits for, waits for storage itself."""
    asleep, read = stages.asleep_share, stages.read_bytes
    if cause not in ("load", "read") or asleep is None or read is None:
        return False
    return asleep > _ASLEEP and read >= _PAGE * max(1, stages.items)


def _name(cause: str, stages: Stages) -> str:
    if cause == "step":
        return "consumer-bound"
    name = _NAMES.get(cause, f"{cause}-bound")
    return f"{name} at the disk's speed" if at_storage_speed(stages, cause) else name


def _sentence(stages: Stages, cause: str, executor: str, depth: int, cores: int) -> str:
    wait, busy = stages.wait_share, stages.busy_share
    start = f"{_name(cause, stages)}: "
    each = _each(stages, cause)
    match cause:
        case "step":
            return (
                f"{start}the loop waited for data {wait:.1%} of the time; the workers were in the loader function "
                f"{busy:.0%} of it"
            )
        case "running":
            return (
                f"{start}the loop waited {wait:.0%} of the time for slots that computations were still reading: the "
                f"device is what limits it, and the loader has nowhere to load to (depth is {depth})"
            )
        case "held":
            return (
                f"retained batches hold {max(1, round(stages.held_slots))} of {depth} slots when the loop asks for the "
                f"next one, and it waited {wait:.0%} of the time, with nowhere to load to: drop them (`del batch`), "
                "raise depth by as many as you keep, or use delivery='copy'"
            )
        case "load" | "read" if at_storage_speed(stages, cause):
            what = "the loader function" if cause == "load" else "reading from the cache"
            return (
                f"{start}the loop waited {wait:.0%} of the time for {what}, and that for storage, which read "
                f"{stages.read_rate / 1e6:.3g} MB/s; the workers (now {stages.workers}) slept "
                f"{stages.asleep_share:.0%} of their time in it. Files that fit into memory come from there in the "
                "next epoch; otherwise smaller files, or more workers if the disk can do more at once, would help"
            )
        case "load" | "read" | "decode" if executor == "inline":
            return f"{start}loading took {wait:.0%} of the time; executor='process' would overlap it"
        case "load" | "read" | "decode":
            what = {"load": "the loader function", "read": "reading from the cache"}.get(cause, "decoding of arrays")
            return f"{start}the loop waited {wait:.0%} of the time for {what}; " + _workers(stages, depth, cores)
        case "queue":
            return (
                f"{start}the loop waited {wait:.0%} of the time for chunks that no worker had begun, each {each} on "
                f"average; the workers were busy {busy:.0%} of it: more of them would help if that is much, and "
                "otherwise see whether they die and start anew, or are denied the processor"
            )
        case "plan":
            return (
                f"{start}the loop waited {wait:.0%} of the time for the main process to look up and send the items' "
                f"descriptors, {each} a batch: make `data[i]` cheaper (a path or a number, and no file that is opened)"
            )
        case "placement":
            return (
                f"{start}the loop waited {wait:.0%} of the time for JAX arrays to be made of a full slot, {each} a "
                "batch: a cheaper placement_func, delivery='alias', or smaller dtypes would help"
            )
        case "copy":
            return (
                f"{start}the loop waited {wait:.0%} of the time for copies to the device, {each} a batch: load smaller "
                "dtypes and convert on the device, and see in the notes whether memory is pinned"
            )
        case "fence":
            return (
                f"{start}the loop waited {wait:.0%} of the time for fences on the device's stream, {each} a batch: "
                "larger batches, or delivery='copy', which needs none"
            )
        case _:
            return (
                f"{start}the loop waited {wait:.0%} of the time although the workers were busy only {busy:.0%} of it; "
                f"a larger depth (now {depth}) or larger batches would help"
            )


def _each(stages: Stages, cause: str) -> str:
    if cause not in ("plan", "queue", "placement", "copy", "fence"):
        return ""
    stage = stages[cause]
    return f"{1e3 * stage.seconds / max(1, stage.count):.3g} ms"


def _workers(stages: Stages, depth: int, cores: int) -> str:
    """What more workers would do about a wait for them."""
    count, busy = stages.workers, stages.busy_share
    if busy < _BUSY:
        return (
            f"the workers (now {count}) were busy only {busy:.0%} of it: they could work ahead with a larger depth "
            f"(now {depth})"
        )
    start = f"the workers (now {count}) were busy {busy:.0%} of it; "
    # What they do in the time that the loop takes for itself they would do unnoticed.
    unnoticed = 1.0 - stages.wait_share
    more = math.ceil(count * busy / unnoticed) - count if unnoticed > 0.02 else 0
    if 0 < more <= 4 * max(count, 4):
        noun = "worker" if more == 1 else "workers"
        room = "" if count + more <= cores else f" (this machine has {cores} processors)"
        return f"{start}about {more} more {noun} would remove the wait{room}, as would less work an item"
    return f"{start}more workers (this machine has {cores} processors) or less work an item would help"
