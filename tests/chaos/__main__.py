"""`python -m tests.chaos --seeds 1000`: runs many cases; status 1 if one of them failed."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import os
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many (default 1000)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first (default 0)")
    parser.add_argument("--verbose", action="store_true", help="a line for each seed, and the loader's log")
    parser.add_argument("--tuned", action="store_true", help="with workers and slots that come and go all the time")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    logging.getLogger("hydrax_gpu").setLevel(logging.WARNING if options.verbose else logging.CRITICAL)

    from hydrax_gpu._exec import procs
    from tests.chaos.case import Agent, Case, check
    from tests.restless import restless

    procs._GRACE_SECONDS = 0.2  # pyright: ignore[reportPrivateUsage]  # workers that hang are left no time here
    agent, failed = Agent(), 0
    tuned = " --tuned" if options.tuned else ""
    try:
        for seed in range(options.first, options.first + options.seeds):
            faulthandler.dump_traceback_later(100, exit=True)
            begin = time.perf_counter()
            with restless() if options.tuned else contextlib.nullcontext():
                case = Case.draw(seed)
                problems = check(case.tuned() if options.tuned else case, agent)
            if problems:
                failed += 1
                print(
                    f"seed {seed} (python -m tests.chaos --first {seed} --seeds 1{tuned}):",
                    *problems,
                    sep="\n  ",
                    flush=True,
                )
            elif options.verbose:
                print(f"seed {seed}: well, {time.perf_counter() - begin:.2f} s", flush=True)
    finally:
        faulthandler.cancel_dump_traceback_later()
        agent.close()
    print(f"{options.seeds} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
