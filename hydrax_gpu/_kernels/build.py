"""Builds the host library out of `kernels/` with the platform's C++ compiler.

    python -m hydrax_gpu._kernels.build            # in an installed package
    python hydrax_gpu/_kernels/build.py            # without one, as the Makefile does

A library with plain C entries and no Python in it, so that one build serves every Python. It holds each kernel in
several variants, one a level of instruction sets, and the one for the processor at hand is chosen when it is loaded.
There is no variant for AVX-512: the kernels are limited by memory, and compilers prefer 256 bits for those processors
anyway. Only the standard library is imported, because this also runs where the package is being installed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__:
    from hydrax_gpu._kernels import sources
else:  # run by its path, which is the first that Python looks in then
    import sources

__all__ = ["FLAGS", "BuildError", "build", "compiler", "is_current"]

# -ffp-contract=off: a product and a sum that are fused would be rounded once, where NumPy rounds twice.
# -fno-trapping-math, -fno-math-errno: nobody looks at exception flags or errno; the values stay the same, but loops
# with a choice in them can be vectorised.
FLAGS = (
    *("-x", "c++", "-std=c++17", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
    *("-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fPIC", "-Wall", "-Wextra"),
)
"""What the kernels are compiled with; the values they compute depend on the floating-point ones."""

_TIMEOUT = 600  # seconds, for one source
_LEVELS = {
    "x86_64": {1: ("-march=x86-64", "-O2"), 3: ("-march=x86-64-v3",)},
}
_BASE: dict[int, tuple[str, ...]] = {1: ()}


class BuildError(Exception):
    """The library could not be built; the text says why."""


def compiler() -> list[str] | None:
    """The command of the C++ compiler: `$CXX`, the first of g++, clang++ and c++ that there is, or None."""
    named = os.environ.get("CXX")
    if named:
        command = shlex.split(named)
        return command if shutil.which(command[0]) else None
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    return None


def is_current(library: Path = sources.LIBRARY) -> bool:
    """Whether the library is there and was built from the sources as they are."""
    try:
        return sources.digest().encode() in library.read_bytes()
    except OSError:
        return False


def build(
    library: Path = sources.LIBRARY,
    *,
    folder: Path | None = None,
    flags: Sequence[str] = (),
    levels: Iterable[int] = (),
) -> Path:
    """Compiles and links; the library appears at once and whole.

    Args:
        library: the file to make.
        folder: the sources; those of the package by default.
        flags: further flags for compiling and linking.
        levels: which of the levels to build, all by default.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    command = compiler()
    if command is None:
        raise BuildError("no C++ compiler was found (tried $CXX, g++, clang++, c++)")
    folder = folder or sources.folder()
    wanted = set(levels)
    known = _LEVELS.get(os.uname().machine, _BASE)
    chosen = {level: extra for level, extra in known.items() if not wanted or level in wanted}
    with tempfile.TemporaryDirectory() as temporary:
        jobs: list[list[str]] = []
        for level, extra in chosen.items():
            for source in sorted(folder.glob("*.cu")):
                target = os.path.join(temporary, f"{source.stem}.{level}.o")
                variant = [*FLAGS, *extra, f"-DHX_PREFIX=v{level}_", *flags]
                jobs.append([*command, *variant, "-c", str(source), "-o", target])
        about = [f'-DHX_DIGEST="{sources.digest()}"', *(f"-DHX_LEVEL_{level}" for level in chosen)]
        target = os.path.join(temporary, "host.o")
        jobs.append([*command, *FLAGS, *flags, *about, "-c", str(folder / "host.cpp"), "-o", target])
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_run, jobs))
        whole = os.path.join(temporary, "whole.so")
        _run([*command, "-shared", *flags, *(job[-1] for job in jobs), "-o", whole])
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_name(f"{library.name}.{os.getpid()}")
        shutil.copyfile(whole, partial)
        os.replace(partial, library)
    return library


def platform_tag() -> str:
    """The wheel tag of a platform that the library runs on."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{shlex.join(command)}: {error}") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{(done.stderr or done.stdout).strip()}")


def main() -> int:
    """Builds unless the library is current; says in one line what came of it."""
    if is_current():
        sources.LIBRARY.touch()  # so that make sees it, too
        return 0
    try:
        build()
    except BuildError as error:
        sources.LIBRARY.unlink(missing_ok=True)  # it is of other sources, and nobody would use it
        print(f"the kernels' host library was not built, NumPy does their work: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
