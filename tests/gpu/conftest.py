"""Leaves these tests out where JAX has no GPU, and says why."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _gpu() -> None:
    import jax

    if jax.default_backend() != "gpu":
        pytest.skip("jax sees no GPU here; `hydrax-gpu doctor` says why", allow_module_level=False)


@pytest.fixture(scope="session")
def cupy(_gpu: None) -> object:
    return pytest.importorskip("cupy", reason="CuPy is not installed")
