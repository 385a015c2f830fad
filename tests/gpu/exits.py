"""Ends a process that runs a loader with a device, with work pending; see `ends`.

python -m tests.gpu.exits WAY DELIVERY cuda|fake
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

WAYS = (
    "end of main",
    "sys.exit",
    "inside the with block",
    "never left",
    "Ctrl-C",
    "Ctrl-C twice",
    "a worker is killed",
)

kept: list[Any] = []


def ends(way: str, delivery: str, device: str, timeout: float = 110) -> None:
    """Runs it in a fresh process and asserts that it ends as it should."""
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if device == "fake" else {})
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.gpu.exits", way, delivery, device],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    status = -signal.SIGINT if way == "Ctrl-C twice" else 0
    assert done.returncode == status, f"{way}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Fatal" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    if way != "Ctrl-C twice":
        assert "Traceback" not in done.stderr, done.stderr
    assert "as it should be" in done.stdout


def main(way: str, delivery: Any, device: str) -> None:
    import jax
    import jax.numpy as jnp

    from hydrax_gpu import Dataloader
    from hydrax_gpu.testing import FakeDevice
    from tests.race.pattern import fill, pattern_group

    size = 2000 if device == "cuda" else 100

    @jax.jit
    def slow(x: Any) -> Any:
        w = jnp.full((size, size), 0.01)
        return x.sum() + jax.lax.fori_loop(0, 60, lambda _, w: jnp.tanh(w @ w), w)[0, 0]

    scope = contextlib.ExitStack()
    if device == "fake":
        scope.enter_context(FakeDevice().in_use())
    loader = Dataloader(
        fill, pattern_group(), loader_count=2, depth=4, delivery=delivery, end_at=("batch", 40), timeout_sec=60
    )
    kept.extend([loader, scope])
    loader.__enter__()
    for _ in range(3):
        kept.append(slow(next(loader).arrays["pattern"]))
    kept.append(next(loader))
    report = loader.report()
    assert report.device is not None and report.delivery == (delivery,), report
    print("as it should be", flush=True)
    if way == "never left":
        return
    if way == "inside the with block":
        sys.exit(0)
    if way.startswith("Ctrl-C"):
        os.kill(os.getpid(), signal.SIGINT)
        if way == "Ctrl-C twice":
            os.kill(os.getpid(), signal.SIGINT)
        assert list(loader) == []
    if way == "a worker is killed":
        os.kill(report.workers[0].pid, signal.SIGKILL)
        kept.clear()
        count = 0
        for batch in loader:
            kept[:] = [slow(batch.arrays["pattern"])]
            del batch
            count += 1
        assert count == 36 and len(loader.report().worker_deaths) <= 1
    loader.__exit__(None, None, None)
    if way == "sys.exit":
        sys.exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
