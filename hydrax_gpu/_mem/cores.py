"""How many processors there are for this process: those it may run on, and what a control group allows of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hydrax_gpu._mem.limits import cgroup_levels, read_file

__all__ = ["Cores", "cores"]


class Cores(NamedTuple):
    """How much processor time there is.

    Attributes:
        number: seconds of it a second, above 0; a quota need not be a whole number.
        what: the limit, such as `processors of this machine` or `CPU quota of the cgroup /job (cpu.max)`.
    """

    number: float
    what: str


def cores(root: Path = Path("/")) -> Cores:
    """The tightest limit on this process's processors.

    Args:
        root: where /proc and /sys are.
    """
    allowed, machine = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    what = "processors of this machine" if allowed == machine else "processors that this process may run on (affinity)"
    return min((Cores(float(allowed), what), *_quotas(root)), key=lambda each: each.number)


def _quotas(root: Path) -> Iterator[Cores]:
    for controllers, level, name in cgroup_levels(root):
        if not controllers:
            quota, _, period = read_file(level / "cpu.max").strip().partition(" ")
            yield from _quota(quota, period, f"CPU quota of the cgroup {name} (cpu.max)")
        elif "cpu" in controllers.split(","):
            quota, period = (read_file(level / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period"))
            yield from _quota(quota, period, f"CPU quota of the cgroup {name} (cpu.cfs_quota_us)")


def _quota(quota: str, period: str, what: str) -> Iterator[Cores]:
    # "max" and "-1" are none, and neither is what cannot be read
    if quota.isascii() and quota.isdigit() and period.isascii() and period.isdigit() and int(quota) and int(period):
        yield Cores(int(quota) / int(period), what)
