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
    options = parser.parse_args(arguments)
    if options.command == "cache":
        return run(options)
    # Imported here: `hydrax-gpu --help` needs none of it.
    from hydrax_gpu._doctor import examine

    found = examine(timeout=options.timeout)
    sys.stdout.write((found.as_json() if options.json else str(found)) + "\n")
    jax = [finding.state for finding in found.findings if finding.name == "jax"]
    return 0 if jax and jax[0] in ("ok", "limited") else 1


if __name__ == "__main__":
    sys.exit(main())
