"""`python -m benchmarks cpu`: the measurements that need no GPU; `gpu`: those that need one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import cache, gpu, handover, items, kernels, large, plan, soak, sources, startup, table
from .harness import Experiment, Run, prepared_file, run_rounds
from .subjects import installed_peers
from .workloads import make_large_file

NAMES = ("items", "bytes", "startup", "handover", "plan", "kernels", "cache", "sources", "jpeg")
SLOW = ("soak",)
"""Only measured when asked for: it takes minutes, and one round says it all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table for each experiment, write all rows. The status is 1 if a measurement failed."""
    options = parse(argv)
    about = table.about()
    if options.command == "gpu":
        name, reason = gpu.device()
        if reason:
            print(f"nothing was measured: {reason}", file=sys.stderr)
            return 2
        about["machine"]["gpu"] = name
        print(name)
    print(table.describe(about))
    failed = False
    out = options.out / f"{options.command}-{about['date'].replace(':', '')}.jsonl" if options.out else None
    with ExitStack() as stack:
        for experiment in chosen(options, stack):
            repeat = options.repeat or {"startup": 9, "soak": 1}.get(experiment.name, 5)
            timeout = max(options.timeout, 1800.0) if experiment.name in SLOW else options.timeout
            runs = run_rounds(experiment, repeat, timeout, options.quiet, options.tries, progress)
            clear()
            summary = list(table.summary_rows(experiment, runs, about))
            print(table.render(experiment.title, summary) + table.others(runs) + table.left_behind(runs))
            failed = failed or any(run.error is not None for run in runs)
            if out is not None:
                table.write_rows(out, [*table.run_rows(experiment, runs, about), *summary])
    if out is not None:
        print(f"rows: {out}")
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    cpu = commands.add_parser("cpu", help="the measurements that need no GPU")
    cpu.add_argument("--only", default=list(NAMES), type=names, help=f"some of {','.join(NAMES + SLOW)}")
    cpu.add_argument("--repeat", type=int, default=0, metavar="N", help="rounds (default 5; startup: 9)")
    cpu.add_argument("--out", type=Path, metavar="DIR", help="write JSON lines to a new file in this folder")
    cpu.add_argument("--peers", action="store_true", help="measure the other loaders that are installed, too")
    cpu.add_argument("--module", metavar="NAME", help="a module with hydrax_gpu's interface, to measure in its place")
    cpu.add_argument("--window", type=float, default=3.0, metavar="S", help="seconds to measure (default 3)")
    cpu.add_argument("--warm", type=float, default=1.0, metavar="S", help="seconds to warm up (default 1)")
    cpu.add_argument("--timeout", type=float, default=60.0, metavar="S", help="a hang ends then (default 60)")
    cpu.add_argument("--tries", type=int, default=3, metavar="N", help="repeat a disturbed run (default 3 in all)")
    cpu.add_argument("--batches", type=int, default=1_000_000, metavar="N", help="of the soak (default 1,000,000)")
    cpu.add_argument("--quiet", type=float, default=0.0, metavar="S", help="wait this long for others to be quiet")
    cpu.add_argument(
        "--python",
        action="append",
        default=[],
        type=interpreter,
        metavar="PEER=PATH",
        help="the interpreter to measure a peer of `jpeg` with, where it cannot be installed beside the others",
    )
    cpu.add_argument("--cases", type=lambda text: text.split(","), metavar="NAMES", help="of `jpeg`, these cases alone")
    device = commands.add_parser("gpu", help="the measurements that need a GPU")
    device.add_argument("--only", default=list(gpu.NAMES), type=gpu_names, help=f"some of {','.join(gpu.NAMES)}")
    device.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds (default 3)")
    device.add_argument("--out", type=Path, metavar="DIR", help="write JSON lines to a new file in this folder")
    device.add_argument("--window", type=float, default=2.0, metavar="S", help="seconds to measure (default 2)")
    device.add_argument("--warm", type=float, default=1.0, metavar="S", help="seconds to warm up (default 1)")
    device.add_argument("--timeout", type=float, default=90.0, metavar="S", help="a hang ends then (default 90)")
    device.set_defaults(quiet=0.0, tries=1)
    return parser.parse_args(argv)


def interpreter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text}: wanted a peer's name, =, and the path of a Python interpreter")
    return name, path


def names(text: str) -> list[str]:
    return _among(text, NAMES + SLOW)


def gpu_names(text: str) -> list[str]:
    return _among(text, gpu.NAMES)


def _among(text: str, known: tuple[str, ...]) -> list[str]:
    chosen_names = text.split(",")
    if wrong := [name for name in chosen_names if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: not one of {', '.join(known)}")
    return chosen_names


def chosen(options: argparse.Namespace, stack: ExitStack) -> Iterator[Experiment]:
    """The experiments that were asked for; the large file lives until `stack` is closed."""
    if options.command == "gpu":
        yield from gpu.experiments(options.only, options.window, options.warm)
        return
    subjects: list[tuple[str, str | None]] = [("hydrax_gpu", options.module)]
    if options.peers:
        subjects += [(name, None) for name in installed_peers()]
    times: dict[str, Any] = {"warm_s": options.warm, "window_s": options.window}
    if "items" in options.only:
        yield from items.experiments(subjects, **times)
    if "bytes" in options.only:
        yield from large.experiments(subjects, **times, file=stack.enter_context(prepared_file(make_large_file)))
    if "startup" in options.only:
        yield from startup.experiments(subjects)
    if "handover" in options.only:
        yield from handover.experiments(subjects, steps=200, pause_s=0.02)
    if "plan" in options.only:
        yield from plan.experiments()
    if "kernels" in options.only:
        yield from kernels.experiments()
    if "cache" in options.only:
        yield from cache.experiments()
    if "sources" in options.only:
        yield from sources.experiments(**times)
    if "jpeg" in options.only:
        # these need NumPy and Pillow, which nothing else here does
        from . import jpeg, photos

        peers = jpeg.PEERS if options.peers else ()
        folder = photos.photographs()[0].parent
        yield from jpeg.experiments(folder, options.module, peers, dict(options.python), options.cases, **times)
    if "soak" in options.only:
        yield from soak.experiments(options.batches)


def progress(run: Run) -> None:
    if sys.stderr.isatty():
        state = "failed" if run.error else "done"
        print(f"\r\033[Kround {run.round + 1}: {run.case} {state}", end="", file=sys.stderr, flush=True)


def clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
