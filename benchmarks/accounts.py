"""What processes cost: CPU time and memory, read from /proc, so that workers are counted and not the parent alone."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RESULT = "RESULT "
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessStat:
    """The fields of /proc/<pid>/stat that matter here."""

    pid: int
    parent: int
    session: int
    born: int
    """Start time in clock ticks since boot: with the pid, it identifies a process."""
    cpu: float
    """User and system time of all its threads in seconds, in steps of one clock tick (usually 10 ms)."""
    zombie: bool


def read_stat(pid: int) -> ProcessStat | None:
    """The state of a process, or None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the command stands in parentheses and may itself hold spaces and parentheses
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        born=int(fields[19]),
        cpu=(int(fields[11]) + int(fields[12])) / TICK,
        zombie=fields[0] in "ZX",
    )


def family(root: int, *, session: bool) -> list[ProcessStat]:
    """The living processes that `root` started, without `root`: its descendants.

    With `session`, also all that is in the session which `root` leads, or led: a process whose parent has ended belongs
    to init and would be missed otherwise.
    """
    stats = [stat for name in os.listdir("/proc") if name.isdigit() and (stat := read_stat(int(name))) is not None]
    found = {root}
    while True:
        more = {s.pid for s in stats if s.pid not in found and (s.parent in found or (session and s.session == root))}
        if not more:
            return [stat for stat in stats if stat.pid in found and stat.pid != root and not stat.zombie]
        found |= more


@dataclass(frozen=True)
class Usage:
    """What a window of time took."""

    wall_s: float
    parent_s: float
    """CPU time of this process."""
    children_s: float
    """CPU time of the processes that it started."""
    processes: int
    """How many processes were counted, this one included."""
    lost: int
    """How many ended within the window, so that their CPU time is missing: a result with any is not to be trusted."""

    def per_item(self, items: int) -> dict[str, float]:
        """Throughput and CPU time per item, as a measurement reports them."""
        total = self.parent_s + self.children_s
        return {
            "items_per_s": items / self.wall_s,
            "cpu_us_per_item": 1e6 * total / items,
            "cpu_us_per_item_parent": 1e6 * self.parent_s / items,
            "cpu_us_per_item_children": 1e6 * self.children_s / items,
            "items": items,
            "wall_s": self.wall_s,
            "processes": self.processes,
            "processes_lost": self.lost,
        }


class Window:
    """Wall-clock and CPU time from its creation to `close()`, over this process and all that it started."""

    def __init__(self) -> None:
        self._children = self._family()
        self._parent = time.process_time()
        self._wall = time.perf_counter()

    def close(self) -> Usage:
        """End the window. The clocks are read before the processes are looked up, which takes a millisecond."""
        wall = time.perf_counter() - self._wall
        parent = time.process_time() - self._parent
        now = self._family()
        # one that was started within the window counts from its birth
        children = sum(cpu - self._children.get(key, 0.0) for key, cpu in now.items())
        return Usage(wall, parent, children, 1 + len(now), len(self._children.keys() - now.keys()))

    @staticmethod
    def _family() -> dict[tuple[int, int], float]:
        me = os.getpid()
        return {(stat.pid, stat.born): stat.cpu for stat in family(me, session=os.getsid(0) == me)}


def machine_busy() -> float:
    """CPU seconds that the whole machine has spent since it started, the host's share that it was denied included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / TICK


def wait_until_quiet(most_s: float, busy_cores: float = 0.2, look_s: float = 0.5) -> None:
    """Wait until others leave the machine alone, for `most_s` at most."""
    end = time.monotonic() + most_s
    while time.monotonic() < end:
        before, start = machine_busy(), time.monotonic()
        time.sleep(look_s)
        if machine_busy() - before <= busy_cores * (time.monotonic() - start):
            return


def memory(pid: int) -> dict[str, float]:
    """Memory of a process in MB (10**6 bytes): its proportional share (PSS), what it alone has, and all it maps."""
    kib = {
        name: int(value.split()[0])
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        for name, value in [line.split(":")]
    }
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"pss_mb": kib["Pss"] * 1.024e-3, "own_mb": own * 1.024e-3, "rss_mb": kib["Rss"] * 1.024e-3}


def maps_jax(pid: int) -> bool:
    """Whether jaxlib's libraries are mapped into a process."""
    return "/jaxlib/" in Path(f"/proc/{pid}/maps").read_text()


def emit(result: dict[str, object]) -> None:
    """Hand a measurement to the harness that started this process."""
    sys.stdout.write(f"\n{RESULT}{json.dumps(result)}\n")
    sys.stdout.flush()
