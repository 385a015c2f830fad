"""A loader that is simulated, batch by batch, to be tuned: workers, slots, a consumer, a few processors, and chance."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field

from hydrax_gpu._engine.tuning import Setting, Window

__all__ = ["Load", "SimulatedLoader"]


@dataclass(frozen=True)
class Load:
    """What there is to do, in seconds a batch.

    Attributes:
        load: of one worker's time.
        step: of the consumer's own.
        hand_over: what the main process does about each batch while the consumer waits.
        cpu: which share of `load` needs a processor.
        together: whether rows are loaded in calls that are as large as can be.
        shared: of something that only one of them can use at a time, such as a disk; they wait for it while they load.
        spread: standard deviation of a chunk's time, relative to it.
    """

    load: float
    step: float = 0.0
    hand_over: float = 0.0
    cpu: float = 0.0
    together: bool = False
    shared: float = 0.0
    spread: float = 0.1


@dataclass
class SimulatedLoader:
    """Runs a load with some setting.

    Attributes:
        load: may be changed at any time.
        setting: as `load`.
        cores: processors that the workers have.
        noise: standard deviation of what happens to a whole window, relative to it.
    """

    load: Load
    setting: Setting
    cores: float
    seed: int = 0
    noise: float = 0.0
    now: float = 0.0
    batches: int = 0
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def window(self, least_seconds: float = 0.15, least_batches: int = 12) -> Window:
        """Runs until it has lasted so long, and so many batches have come. (The first are not counted, as there.)"""
        workers, slots = self.setting
        load = self.load
        # processors are shared, and what happens on the machine meanwhile concerns all of them
        stretch = max(1.0, workers * load.cpu / self.cores, workers * load.shared / load.load) * max(
            0.2, 1 + self.noise * self.rng.gauss(0, 1)
        )
        free_workers = [0.0] * workers
        released = [0.0] * slots  # when the batches before gave their slots back, in order
        chunks = math.ceil(workers / max(1, slots - 1))  # as the engine cuts them
        if chunks > 1 and not load.together:
            chunks *= 2
        clock = begin = busy = waited = loading = 0.0
        counted = -(slots + 1)
        while counted < least_batches or clock - begin < least_seconds:
            if counted == 0:
                begin, busy, waited, loading = clock, 0.0, 0.0, 0.0
            there = released[-slots]
            done = 0.0
            for _ in range(chunks):
                at = max(heapq.heappop(free_workers), there)
                took = load.load / chunks * stretch * max(0.1, 1 + load.spread * self.rng.gauss(0, 1))
                busy += took
                done = max(done, at + took)
                heapq.heappush(free_workers, at + took)
            given = max(clock, done) + load.hand_over
            waited += given - clock
            loading += max(0.0, done - clock)
            clock = given + load.step
            released.append(clock)
            counted += 1
        self.now += clock
        self.batches += counted + slots + 1
        cpu = busy / stretch * load.cpu
        return Window(clock - begin, counted, waited, loading, busy, cpu)

    def rate(self, setting: Setting) -> float:
        """Batches a second with a setting, without noise."""
        twin = SimulatedLoader(self.load, setting, self.cores)
        return 1 / twin.window(0.0, 150).period
