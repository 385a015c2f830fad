"""The commands on a cache's directory.

Their status is 0 when all is well, 1 when something is damaged (after `repair`: was, and has been left out), and 2 when
the command could not do what it is for.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrax_gpu._cache.maintenance import Cache, Outcome

__all__ = ["add_parser", "run"]

_SHOWN = 20
_STATUS = "The status is 0 when all is well, 1 when something is damaged, and 2 when the command could not be done."


def add_parser(commands: Any) -> None:
    """Adds `cache` and its own commands to an `argparse` parser's."""
    cache = commands.add_parser(
        "cache",
        help="what is in a cache on disk, whether it is good, and making it so",
        description="Looks after a cache: the directory that is a DataGroup's cache_location.",
        epilog=_STATUS,
    )
    actions = cache.add_subparsers(dest="action", required=True, metavar="action")
    info = actions.add_parser("info", help="what it is of, its entries, its writers and its size", epilog=_STATUS)
    info.add_argument("--json", action="store_true", help="for programs")
    verify = actions.add_parser("verify", help="read everything, and list what is damaged", epilog=_STATUS)
    repair = actions.add_parser(
        "repair",
        help="leave out what is damaged, and put the rest together",
        description="Writes all good entries anew and removes the rest, when nobody is writing. Damaged ones are made "
        "again by the next run that fills the cache. The disk needs room for another copy of the largest writer's "
        "files.",
        epilog=_STATUS,
    )
    copy = actions.add_parser("copy", help="a verified copy of all good entries, put together", epilog=_STATUS)
    for parser in (info, verify, repair, copy):
        parser.add_argument("location", metavar="LOCATION", help="the cache's directory")
    copy.add_argument("target", metavar="TARGET", help="a directory that is empty or not there")
    copy.add_argument(
        "--compression",
        metavar="[ARRAY=]FORM",
        action="append",
        default=[],
        help="keep arrays, or the one of that name, as none, zstd, lz4 or int8 (which rounds); may be given several "
        "times. By default all stay as they are",
    )
    for parser in (verify, repair, copy):
        parser.add_argument("--all", action="store_true", help=f"list all that is damaged, not {_SHOWN}")
        parser.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Runs a command and returns the process's exit status."""
    # imported here: `hydrax-gpu --help` needs none of it
    from hydrax_gpu._cache.maintenance import Cache, restore_descriptor
    from hydrax_gpu._cachecli.progress import Progress
    from hydrax_gpu.errors import CacheError

    try:
        restored = options.action == "repair" and restore_descriptor(options.location)
        cache = Cache(options.location)
        if options.action == "info":
            return _info(cache, options.json)
        with Progress(options.action, len(cache), quiet=options.quiet) as progress:
            if options.action == "verify":
                outcome = cache.verify(progress)
            elif options.action == "repair":
                outcome = cache.repair(progress)
            else:
                outcome = cache.copy(options.target, progress, _forms(options.compression))
    except CacheError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{options.location}: {error}")
    _show(outcome, options.all)
    if restored:
        _write("cache.json was damaged, and has been restored from the journals.")
    _write(_verdict(options, outcome))
    return 0 if outcome.good and not restored else 1


def _info(cache: Cache, as_json: bool) -> int:
    descriptor, files = cache.descriptor, cache.files()
    running = cache.running
    per_entry = sum(array.value_nbytes for array in descriptor.arrays)
    stored, ratio = cache.stored_nbytes, cache.compression_ratio
    data: dict[str, Any] = {
        "location": cache.location,
        "entries": len(cache),
        "replaced": cache.replaced,
        "files": len(files),
        "size_bytes": sum(files.values()),
        "entry_bytes": per_entry,
        "stored_bytes": {array.name: nbytes for array, nbytes in zip(descriptor.arrays, stored, strict=True)},
        "compression_ratio": ratio,
        "writers": len(cache.writers),
        "running": running,
        "descriptor": asdict(descriptor),
    }
    if as_json:
        _write(json.dumps(data, indent=2))
        return 0
    each_pass = "" if descriptor.seeded == "item" else " a pass"
    lines = [
        f"{cache.location}: {len(cache):,} entries of {descriptor.length:,} items{each_pass}, {per_entry:,} bytes each",
        f"{data['size_bytes']:,} bytes in {len(files)} files of {len(cache.writers)} writers"
        + (f", at work: {', '.join(running)}" if running else "")
        + (f"; {cache.replaced:,} entries are replaced by others" if cache.replaced else ""),
        *(
            f"  {array.name}: {list(array.item_shape)} {array.dtype}"
            + (f", {array.compression}: {nbytes:,} bytes on disk" if array.compression else "")
            for array, nbytes in zip(descriptor.arrays, stored, strict=True)
        ),
        *([f"compressed to 1/{ratio:.2f}"] if ratio and any(a.compression for a in descriptor.arrays) else []),
        f"seed {descriptor.seed}, shuffle_first {descriptor.shuffle_first}, shuffle_later {descriptor.shuffle_later}, "
        f"one entry an item{' and pass' if descriptor.seeded == 'pass' else ''}",
        f"data {descriptor.fingerprint}, cache_version {descriptor.cache_version!r}",
        "`hydrax-gpu cache verify` tells whether they are good.",
    ]
    _write("\n".join(lines))
    return 0


def _forms(given: list[str]) -> dict[str, str | None]:
    """What `--compression` says, by names of arrays; "" for all."""
    forms: dict[str, str | None] = {}
    for each in given:
        name, _, form = each.rpartition("=")
        forms[name] = None if form == "none" else form
    return forms


def _show(outcome: Outcome, everything: bool) -> None:
    lines = [
        *outcome.damaged,
        *(
            f"item {bad.item}" + (f", pass {bad.pass_}" if bad.pass_ else "") + f" ({bad.writer}): {bad.reason}"
            for bad in outcome.bad
        ),
    ]
    shown = lines if everything else lines[:_SHOWN]
    for line in shown:
        _write(line)
    if len(lines) > len(shown):
        _write(f"and {len(lines) - len(shown):,} more: see --all")


def _verdict(options: argparse.Namespace, outcome: Outcome) -> str:
    bad = len(outcome.bad) + len(outcome.damaged)
    good = f"{outcome.entries:,} entries ({outcome.nbytes:,} bytes) are good"
    if options.action == "verify":
        if not bad:
            return f"{good}, and nothing is damaged."
        return f"{good}, {bad:,} things are damaged: they are never served. `hydrax-gpu cache repair` leaves them out."
    where = f"in {options.target}" if options.action == "copy" else "put together"
    return f"{good} and are now {where}; {bad:,} damaged things were left out."


def _fail(message: str) -> int:
    sys.stderr.write(f"hydrax-gpu cache: {message}\n")
    return 2


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
