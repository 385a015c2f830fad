"""Pre-emption of a job of several processes: all of them end before the same batch."""

from __future__ import annotations

from typing import Any, cast

__all__ = ["reached"]


def reached(step: int) -> bool:
    """Whether the job is to end before this training step; on all processes before the same one.

    jax's runtime takes SIGTERM over in each process, tells the others, and finds a step that none of them has begun.

    Args:
        step: training steps done so far. It may be asked for more than once, and must never go back.

    Raises:
        RuntimeError: jax was told to leave SIGTERM alone.
    """
    from jax.experimental import multihost_utils

    try:
        return bool(cast("Any", multihost_utils).reached_preemption_sync_point(step))
    except RuntimeError as error:
        raise RuntimeError(
            "sigterm= needs jax's pre-emption service where the arrays are spread over several processes, so that all "
            "of them end before the same batch, and it is off here. Set jax.config.update("
            "'jax_enable_preemption_service', True) before jax.distributed.initialize(), or leave sigterm=False."
        ) from error
