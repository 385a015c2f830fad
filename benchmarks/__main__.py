"""Measure loaders: `cpu` what needs no GPU, `gpu` what does, `peers` all loaders side by side, `all` everything."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import (
    cache,
    cache_forms,
    gpu,
    handover,
    items,
    kernels,
    large,
    overlap,
    plan,
    publish,
    scale,
    shards,
    soak,
    sources,
    stages,
    startup,
    table,
)
from .harness import Experiment, Run, prepared_file, run_rounds
from .peers import NAME, PEERS, choose
from .workloads import make_large_file, make_record_file

NAMES = (
    *("items", "bytes", "overlap", "startup", "handover", "plan", "shards", "scale", "kernels", "cache", "sources"),
    "stages",
    "jpeg",
)
SLOW = ("soak",)
"""Only measured when asked for: it takes minutes, and one round says it all."""
COMPARED = ("items", "bytes", "overlap", "startup", "jpeg")
"""What all loaders are measured with."""
LIKE_OURS = (NAME, "hydrax")
"""Whose batches `handover` can take: they have hydrax_gpu's interface."""
REPEAT = {"startup": 9, "soak": 1}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table for each experiment, write all rows. The status is 1 if hydrax_gpu or a limit failed."""
    options = parse(argv)
    if options.command != "all":
        return measure(options)
    on_gpu = parse(["gpu", *(["--out", str(options.out)] if options.out else [])])
    status = measure(options)
    name, reason = gpu.device()
    if reason:
        print(f"left out: what needs a GPU ({reason})", file=sys.stderr)
        return status
    return max(status, measure(on_gpu, name))


def measure(options: argparse.Namespace, gpu_name: str = "") -> int:
    """The measurements of one command."""
    about = table.about()
    about["run"] = {key: getattr(options, key) for key in ("repeat", "window", "warm", "tries", "quiet")}
    if options.command == "gpu" and not gpu_name:
        gpu_name, reason = gpu.device()
        if reason:
            print(f"nothing was measured: {reason}", file=sys.stderr)
            return 2
    if gpu_name:
        about["machine"]["gpu"] = gpu_name
        print(gpu_name)
    print(table.describe(about))
    failed = False
    page: publish.Page | None = None
    if options.out is not None:
        page = publish.Page(options.out, f"{options.command}-{about['date'].replace(':', '')}", about)
    with ExitStack() as stack:
        for experiment in chosen(options, stack):
            repeat = options.repeat or REPEAT.get(experiment.name, options.rounds)
            timeout = max(options.timeout, 1800.0) if experiment.name in SLOW else options.timeout
            runs = run_rounds(experiment, repeat, timeout, options.quiet, options.tries, progress)
            clear()
            summary = list(table.summary_rows(experiment, runs, about))
            print(table.render(experiment.title, summary) + table.others(runs) + table.left_behind(runs))
            peers = {case.name for case in experiment.cases if case.peer}
            failed = failed or any(run.error is not None and run.case not in peers for run in runs)
            if page is not None:
                page.add(experiment, runs, summary)
    if page is not None:
        print("\n".join(page.close()))
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    cpu = commands.add_parser("cpu", help="the measurements that need no GPU")
    _measured(cpu, NAMES, NAMES + SLOW)
    cpu.add_argument("--peers", action="store_true", help="measure the other loaders that are installed, too")
    compare = commands.add_parser("peers", help="hydrax_gpu beside all other loaders, and why one cannot be measured")
    _measured(compare, COMPARED, COMPARED)
    compare.set_defaults(peers=True)
    everything = commands.add_parser("all", help="all of cpu with the peers, and of gpu if there is one")
    _measured(everything, NAMES, NAMES + SLOW)
    everything.set_defaults(peers=True)
    device = commands.add_parser("gpu", help="the measurements that need a GPU")
    device.add_argument("--only", default=list(gpu.NAMES), type=gpu_names, help=f"some of {','.join(gpu.NAMES)}")
    device.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds (default 3)")
    device.add_argument("--out", type=Path, metavar="DIR", help=OUT)
    device.add_argument("--window", type=float, default=2.0, metavar="S", help="seconds to measure (default 2)")
    device.add_argument("--warm", type=float, default=1.0, metavar="S", help="seconds to warm up (default 1)")
    device.add_argument("--timeout", type=float, default=90.0, metavar="S", help="a hang ends then (default 90)")
    device.set_defaults(quiet=0.0, tries=1, rounds=3)
    return parser.parse_args(argv)


OUT = "write JSON lines, a Markdown table and plots to new files in this folder"


def _measured(parser: argparse.ArgumentParser, default: tuple[str, ...], known: tuple[str, ...]) -> None:
    """The arguments of what is measured without a GPU."""
    only = parser.add_argument("--only", default=list(default), help=f"some of {','.join(known)}")
    only.type = lambda text: _among(text, known)
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="rounds (default 5; startup: 9)")
    parser.add_argument("--out", type=Path, metavar="DIR", help=OUT)
    parser.add_argument(
        "--module", metavar="NAME", help="a module with hydrax_gpu's interface, to measure in its place"
    )
    parser.add_argument("--window", type=float, default=3.0, metavar="S", help="seconds to measure (default 3)")
    parser.add_argument("--warm", type=float, default=1.0, metavar="S", help="seconds to warm up (default 1)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="a hang ends then (default 60)")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="repeat a disturbed run (default 3 in all)")
    parser.add_argument("--batches", type=int, default=1_000_000, metavar="N", help="of the soak (default 1,000,000)")
    parser.add_argument("--quiet", type=float, default=0.0, metavar="S", help="wait this long for others to be quiet")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="measure a loader of your own, too (benchmarks/README.md, Adding a peer)",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        type=interpreter,
        metavar="[PEER=]PATH",
        help="the interpreter to measure the peers with, or one that cannot be installed beside the others",
    )
    parser.add_argument(
        "--cases", type=lambda text: text.split(","), metavar="NAMES", help="measure these loaders and limits alone"
    )
    parser.set_defaults(rounds=5)


def interpreter(text: str) -> tuple[str, str]:
    """A peer's name, "" for all of them, and the path of a Python interpreter."""
    name, separator, path = text.rpartition("=")
    if not Path(path).is_file() or bool(name) != bool(separator):
        raise argparse.ArgumentTypeError(
            f"{text}: wanted the path of a Python interpreter, or a peer's name, =, and such a path"
        )
    return name, path


def gpu_names(text: str) -> list[str]:
    return _among(text, gpu.NAMES)


def _among(text: str, known: tuple[str, ...]) -> list[str]:
    chosen_names = text.split(",")
    if wrong := [name for name in chosen_names if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: not one of {', '.join(known)}")
    return chosen_names


def chosen(options: argparse.Namespace, stack: ExitStack) -> Iterator[Experiment]:
    """The experiments that were asked for; the files that they need live until `stack` is closed."""
    if options.command == "gpu":
        yield from gpu.experiments(options.only, options.window, options.warm)
        return
    found = False
    for experiment in _without_gpu(options, stack):
        if options.cases is not None:
            experiment = narrow(experiment, options.cases)
            if not experiment.cases and not experiment.left_out:
                continue
        found = True
        yield experiment
    if not found:
        raise SystemExit(f"--cases: no measurement has {', '.join(options.cases)}")


def narrow(experiment: Experiment, names: Sequence[str]) -> Experiment:
    """The same with these cases alone."""
    left_out = {name: reason for name, reason in experiment.left_out.items() if name in names}
    cases = tuple(case for case in experiment.cases if case.name in names)
    return replace(experiment, cases=cases, left_out=left_out)


def _without_gpu(options: argparse.Namespace, stack: ExitStack) -> Iterator[Experiment]:
    peers = [*(PEERS if options.peers else ()), *options.peer]
    subjects = choose(options.module, peers, dict(options.python))
    times: dict[str, Any] = {"warm_s": options.warm, "window_s": options.window}
    folder = stack.enter_context(TemporaryDirectory(prefix="hydrax-benchmark-"))
    weighed = {"memory": options.peers or bool(options.peer)}
    if "items" in options.only:
        yield from items.experiments(subjects, folder, **times, **weighed)
    if "bytes" in options.only:
        file = stack.enter_context(prepared_file(make_large_file))
        yield from large.experiments(subjects, **times, file=file, **weighed)
    if "overlap" in options.only:
        file = stack.enter_context(prepared_file(make_record_file))
        yield from overlap.experiments(subjects, **times, file=file, **weighed)
    if "startup" in options.only:
        yield from startup.experiments(subjects, folder, **weighed)
    if "handover" in options.only:
        yield from handover.experiments([one for one in subjects if one.name in LIKE_OURS], steps=200, pause_s=0.02)
    if "plan" in options.only:
        yield from plan.experiments()
    if "scale" in options.only:
        yield from scale.experiments()
    if "shards" in options.only:
        yield from shards.experiments()
    if "kernels" in options.only:
        yield from kernels.experiments()
    if "cache" in options.only:
        yield from cache.experiments()
        yield cache_forms.experiment()
    if "sources" in options.only:
        yield from sources.experiments(**times)
    if "stages" in options.only:
        yield from stages.experiments()
    if "jpeg" in options.only:
        # these need NumPy and Pillow, which nothing else here does
        from . import jpeg, photos

        yield from jpeg.experiments(photos.photographs()[0].parent, subjects, **times)
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
