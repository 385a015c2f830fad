"""The kernels on a CUDA device: compiled by NVRTC through CuPy when first used, and launched on a stream.

Nothing here has been run on a GPU yet. What can be tested without one is: the sources compile with these options for
the architectures named in `ARCHITECTURES`, without local memory; `grid` is a pure function; and the arguments'
structures are those of the host library, whose kernels are the same sources.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hydrax_gpu._kernels import sources

__all__ = ["ARCHITECTURES", "OPTIONS", "THREADS", "DeviceKernel", "Grid", "grid", "options"]

ARCHITECTURES = ("sm_70", "sm_80", "sm_90", "sm_100")
"""Those that the kernels are known to compile for."""

THREADS = 256
"""Of a block; `HX_THREADS` in the sources."""

# -fmad=false: as the host's -ffp-contract=off. Subnormals are kept and divisions and roots rounded right by default.
OPTIONS = ("-std=c++17", "-fmad=false")
"""What the kernels are compiled with; the values they compute depend on it."""

_WAVES = 4
_MAX_Y = 65535


class Grid(NamedTuple):
    """Blocks of a launch: x over the tiles of a row, y over the rows. The kernels loop over what is left."""

    x: int
    y: int


def grid(rows: int, tiles: int, *, multiprocessors: int, blocks_each: int) -> Grid:
    """How many blocks to launch for `rows` times `tiles` blocks of work.

    One block for each, but not more than a few waves of the device: a block that goes on with another tile does not pay
    again for its start and its tables. Rows are spread out before tiles, so that no block needs more than one table.

    Args:
        rows: of the batch, at least 1.
        tiles: of a row, at least 1.
        multiprocessors: of the device.
        blocks_each: blocks of the kernel that a multiprocessor can hold at a time.
    """
    most = max(1, multiprocessors * blocks_each * _WAVES)
    y = min(rows, most, _MAX_Y)
    return Grid(max(1, min(tiles, most // y)), y)


def options(inputs: str = "", output: str = "") -> tuple[str, ...]:
    """For the compiler. A kernel of many combinations is compiled for one: `inputs` and `output` as in its name."""
    chosen = (f"-DHX_IN={inputs}", f"-DHX_OUT={output}") if inputs else ()
    return (*OPTIONS, f"-I{sources.folder()}", *chosen)


@cache
def _cupy() -> Any:
    """The module, untyped: it has no types that could be relied on."""
    return importlib.import_module("cupy")


@cache
def _module(source: str, given: tuple[str, ...]) -> Any:
    return _cupy().RawModule(code=(sources.folder() / f"{source}.cu").read_text(), options=given, backend="nvrtc")


class DeviceKernel:
    """A kernel on the current device.

    Args:
        source: file of the kernel, without `.cu`.
        name: of the entry.
        inputs: input type of the combination, where the source has many.
        output: its output type.
    """

    def __init__(self, source: str, name: str, inputs: str = "", output: str = "") -> None:
        cupy = _cupy()
        self._function = _module(source, options(inputs, output)).get_function(name)
        device = cupy.cuda.Device()
        self._multiprocessors = int(device.attributes["MultiProcessorCount"])
        threads = int(device.attributes["MaxThreadsPerMultiProcessor"])
        registers = int(device.attributes["MaxRegistersPerMultiprocessor"])
        by_registers = registers // max(1, self._function.num_regs * THREADS)
        self._blocks_each = max(1, min(threads // THREADS, by_registers))

    def __call__(self, arguments: ctypes.Structure, rows: int, tiles: int, stream: Any) -> None:
        """Launches on the CuPy stream `stream`; `arguments` holds device addresses."""
        if not rows:
            return
        blocks = grid(rows, tiles, multiprocessors=self._multiprocessors, blocks_each=self._blocks_each)
        # CuPy passes a NumPy record of the structure's own dtype by value.
        value = np.frombuffer(bytes(arguments), np.dtype(type(arguments)), 1)[0]
        with stream:
            self._function(blocks, (THREADS,), (value,))
