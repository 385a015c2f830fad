"""What holds for every test: several CPU devices, repeatable examples, and nothing left behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: a shared machine is slow now and then. The same examples each time, so that a change is judged and not
# the luck of the draw; `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses JAX's devices, which it reads once, when its backend starts: before any test module can import it."""
    # Several devices show sharding mistakes on any machine.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    if config.option.markexpr != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    else:
        # Some tests run a process of their own, whose JAX needs memory of the GPU beside ours.
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.3")
        # A kernel that is loaded when it is first launched may wait for one that spins until a test lets it go.
        os.environ.setdefault("CUDA_MODULE_LOADING", "EAGER")


@pytest.fixture(scope="session")
def _warm() -> None:
    # At first use JAX starts threads and opens files that stay. They are not the test's that happens to come first.
    import jax
    import jax.numpy as jnp
    import numpy as np

    assert jax.jit(lambda x: x + 1)(jnp.zeros(3)).sum() == 3
    jnp.from_dlpack(np.zeros(64, np.float32))
    jax.device_put(np.zeros(3)).block_until_ready()
    # What has been imported stays. Not to look through it at every collection saves most of their time.
    gc.collect()
    gc.freeze()


def _left_overs() -> dict[str, str]:
    """Everything that a loader must not leave behind: children, threads and file descriptors, each with a name."""
    found: dict[str, str] = {}
    for task in os.listdir("/proc/self/task"):  # children are listed under the thread that started them
        try:
            with open(f"/proc/self/task/{task}/children") as children:  # a tenth of what Path takes, before every test
                pids = children.read().split()
        except OSError:  # that thread has just ended, and its children moved to another
            continue
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                command = ""
            # A child that ended and was never waited for has no command line, and is left behind all the same.
            found[f"child process {pid}"] = command[:200] or "(ended, but never waited for)"
    for thread in threading.enumerate():
        if thread.name.startswith("hydrax_gpu-"):
            found[f"thread {thread.name} ({thread.ident})"] = "alive" if thread.is_alive() else "ended"
    for name in os.listdir("/proc/self/fd"):
        try:
            found[f"file descriptor {name}"] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the one that the folder itself was listed with
            continue
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(_warm: None) -> Iterator[None]:
    """Fails a test that leaves a child process, a thread of ours, or a file descriptor behind."""
    before = _left_overs()
    yield
    left = _new(before)
    if left:
        # An object in a reference cycle is not a leak, but it looks like one until the collector comes by.
        gc.collect()
        left = _new(before)
    # Whether the test itself passed does not matter: what a failing test leaves behind confuses those after it, too.
    assert not left, "the test left behind: " + "; ".join(f"{what}: {detail}" for what, detail in left.items())


def _new(before: dict[str, str]) -> dict[str, str]:
    # By name and target, because a file descriptor's number is given to the next file as soon as it is free.
    return {what: detail for what, detail in _left_overs().items() if before.get(what) != detail}
