"""The command `hydrax-gpu`, also `python -m hydrax_gpu`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hydrax_gpu._cachecli import add_parser, run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the process's exit status.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    parser = argparse.ArgumentParser("hydrax-gpu", description="a data loader for JAX")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor = commands.add_parser(
        "doctor",
        help="what this machine can do for the loader, why not more, and how to get it",
        description="Looks at the machine and what is installed. The status is 0 unless jax itself does not work.",
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument("--timeout", type=float, default=120.0, metavar="S", help="for each package (default 120 s)")
    add_parser(commands)
    preview = commands.add_parser(
        "preview",
        help="load one batch and look at it: a table, and a contact sheet",
        description="Loads one batch of a loader and shows what it holds. The status is 1 when it cannot.",
    )
    preview.add_argument("target", help="module:name of a Dataloader, or of a function that makes one; or file.py:name")
    which = preview.add_mutually_exclusive_group()
    which.add_argument("--batch", type=int, metavar="N", help="number of a training batch, from 0 (default: the first)")
    which.add_argument("--state", metavar="FILE", help="JSON of a loader's state(): the batch that comes next")
    preview.add_argument("-o", "--output", metavar="FILE", help="write a contact sheet there, such as sheet.png")
    preview.add_argument("--rows", type=int, default=64, metavar="N", help="rows on the sheet (default: up to 64)")
    preview.add_argument("--json", action="store_true", help="for programs")
    report = commands.add_parser(
        "report",
        help="read a trace: which stage is slow, and a picture of the timeline",
        description="Reads a file that Dataloader(trace=...) has written. The status is 1 when it cannot.",
    )
    report.add_argument("trace", help="the file, such as run.json")
    report.add_argument("-o", "--output", metavar="FILE", help="write a picture there, such as run.png")
    report.add_argument("--begin", type=float, default=0.0, metavar="S", help="second that the picture begins with")
    report.add_argument("--length", type=float, metavar="S", help="seconds that it shows (default: the rest)")
    options = parser.parse_args(arguments)
    if options.command == "cache":
        return run(options)
    # Imported here: `hydrax-gpu --help` needs none of it.
    if options.command == "preview":
        from hydrax_gpu._preview import preview as show

        status, text = show(
            options.target,
            batch=options.batch,
            state=options.state,
            output=options.output,
            rows=max(1, options.rows),
            as_json=options.json,
        )
        (sys.stderr if status else sys.stdout).write(text + "\n")
        return status
    if options.command == "report":
        from hydrax_gpu._timeline import report as tell

        status, text = tell(options.trace, output=options.output, begin=options.begin, length=options.length)
        (sys.stderr if status else sys.stdout).write(text + "\n")
        return status
    from hydrax_gpu._doctor import examine

    found = examine(timeout=options.timeout)
    sys.stdout.write((found.as_json() if options.json else str(found)) + "\n")
    jax = [finding.state for finding in found.findings if finding.name == "jax"]
    return 0 if jax and jax[0] in ("ok", "limited") else 1


if __name__ == "__main__":
    sys.exit(main())
