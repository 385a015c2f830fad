"""However a process with a loader on a GPU ends, it ends as it should."""

from __future__ import annotations

import pytest

from tests.gpu import exits

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cupy")]


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize("way", exits.WAYS)
def test_an_end(way: str, delivery: str) -> None:
    exits.ends(way, delivery, "cuda")
