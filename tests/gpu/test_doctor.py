"""The doctor on a machine with a GPU."""

from __future__ import annotations

import pytest

from hydrax_gpu._doctor import examine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300), pytest.mark.usefixtures("cupy")]


def test_what_is_there_is_found() -> None:
    found = {finding.name: finding for finding in examine().findings}
    for name in ("NVIDIA driver", "CuPy", "pinning", "bandwidth"):
        assert found[name].state == "ok", found[name]
    assert found["bandwidth"].data["h2d_gb_per_s"] > 1
    assert found["jax"].state == "ok", found["jax"]
