"""Nothing is left behind, however a process ends; see `tests.race.exits`.

Seen to fail when workers did not ask for a signal on their parent's death (a worker that hangs lives on after SIGKILL).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys


def test_fifty_exits_at_random_moments_leave_nothing_behind() -> None:
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.race.exits", "60"], capture_output=True, text=True, timeout=110, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"seeds": 60, "problems": {}}, done.stderr[-3000:]
