"""Whether this process is a loader's worker."""

from __future__ import annotations

__all__ = ["become_worker", "is_worker"]

_worker = False


def is_worker() -> bool:
    """True in a worker process of a `Dataloader`, False everywhere else.

    A worker imports the script that was run when the loader function is defined in it; code that must not run there
    belongs under `if __name__ == "__main__":`, or can ask this function.
    """
    return _worker


def become_worker() -> None:
    """Called once, first thing, by a worker process."""
    global _worker
    _worker = True
