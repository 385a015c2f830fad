"""What a loader that chooses its own workers and slots has chosen, and why."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tuning", "TuningStep"]


@dataclass(frozen=True, slots=True)
class TuningStep:
    """One change."""

    seconds: float
    """When: since the loader was entered."""
    batches: int
    """How many batches had been handed out by then."""
    workers: int
    """Number of workers from then on."""
    depth: int
    """Number of slots in use from then on."""
    batches_per_second: float
    """How many batches came a second before that; 0 at the start."""
    why: str
    """What it was done for."""

    def __str__(self) -> str:
        rate = f", {self.batches_per_second:.4g} batches a second" if self.batches_per_second else ""
        when = f"after {self.seconds:.2f} s (batch {self.batches}{rate})"
        return f"{when}: {self.workers} workers, {self.depth} slots; {self.why}"


@dataclass(frozen=True, slots=True)
class Tuning:
    """What came of `loader_count="auto"` and `depth="auto"`."""

    workers: int
    """Number of workers now; those that are starting count, those that are to end do not."""
    depth: int
    """Number of slots in use now."""
    settled: bool
    """Whether nothing is being tried; a load that changes is noticed, and then something is again."""
    why: str
    """Why it is not more, nor less: what limits it."""
    most_workers: int
    """How many workers there can be."""
    most_depth: int
    """How many slots there can be."""
    cores: float
    """Processors that there are for this process, by its affinity and the quota of its control group."""
    steps: tuple[TuningStep, ...] = ()
    """What was chosen, with the start as the first; of many steps, the start and the last ones."""

    def __str__(self) -> str:
        state = "settled" if self.settled else "still trying"
        lines = [
            f"{self.workers} workers (of at most {self.most_workers}), {self.depth} slots (of at most "
            f"{self.most_depth}), {state}: {self.why}",
            *map(str, self.steps),
        ]
        return "\n".join(lines)
