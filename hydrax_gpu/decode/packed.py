"""`UnpackBits` and `Dequantize`: elements of less than a byte, or of a byte and a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import at_least, choice
from hydrax_gpu.decode.base import Bound, Decode, Kept, Rows
from hydrax_gpu.decode.checks import array_name, companion, dtype_in, numbers

if TYPE_CHECKING:
    from hydrax_gpu._kernels.host import Library

__all__ = ["BitOrder", "Dequantize", "UnpackBits"]

BitOrder: TypeAlias = Literal["big", "little"]


@final
@dataclass(frozen=True, slots=True)
class UnpackBits(Decode):
    """Numbers of 1, 2 or 4 bits, packed into bytes along the last axis, to one element each.

    The declared dtype is uint8 and the declared last axis counts bytes. Every line along it begins with a byte of its
    own. `jax_dtype` is bool (of one bit), an integer of 8, 16 or 32 bits, float16, bfloat16 or float32.

    Attributes:
        bits: of an element: 1, 2 or 4.
        width: elements of a line; by default as many as its bytes hold.
        order: whether the first element of a byte is in its highest bits, as `numpy.packbits` has it ("big"), or in its
            lowest ("little").
        values: what each of the `2 ** bits` numbers becomes, by default itself.
    """

    bits: Literal[1, 2, 4] = 1
    width: int | None = None
    order: BitOrder = "big"
    values: Sequence[float] | None = None

    def __post_init__(self) -> None:
        choice("UnpackBits: bits", self.bits, (1, 2, 4))
        choice("UnpackBits: order", self.order, ("big", "little"))
        if self.width is not None:
            object.__setattr__(self, "width", at_least("UnpackBits: width", self.width, 1))
        if self.values is not None:
            values = numbers("UnpackBits: values", self.values)
            if not isinstance(values, tuple) or len(values) != 2**self.bits:
                raise ValueError(
                    f"UnpackBits: got values {self.values!r}, wanted {2**self.bits} numbers, one for each that "
                    f"{self.bits} bits can hold"
                )
            object.__setattr__(self, "values", values)

    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        shape, source, wanted = declared[name]
        dtype_in("UnpackBits", "numpy_dtype", source, ("uint8",))
        allowed = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "bfloat16", "float32")
        dtype_in("UnpackBits", "jax_dtype", wanted, (*(("bool",) if self.bits == 1 else ()), *allowed))
        if not shape:
            raise ValueError("UnpackBits: got shape (), wanted a last axis of bytes")
        width = shape[-1] * 8 // self.bits if self.width is None else self.width
        if -(-width * self.bits // 8) != shape[-1]:
            raise ValueError(
                f"UnpackBits: {width} elements of {self.bits} bits need {-(-width * self.bits // 8)} bytes, "
                f"but the last axis of shape {shape} has {shape[-1]}"
            )
        table = self._table(wanted)
        if self.values is not None and not np.array_equal(table.astype(np.float64), self.values):
            raise ValueError(f"UnpackBits: not all of the values {self.values} are numbers of {wanted}")
        return {name: Kept((*shape[:-1], width), wanted, wanted)}

    def _table(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        with np.errstate(all="ignore"):
            numbers = np.arange(2**self.bits) if self.values is None else np.asarray(self.values)
            return numbers.astype(np.float32).astype(dtype) if dtype.kind not in "iu" else numbers.astype(dtype)

    def bind(
        self, library: Library | None, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]
    ) -> Bound:
        from hydrax_gpu._kernels.unpack_bits import UnpackBits as Kernel

        shape, dtype, _ = outputs[name]
        kernel = Kernel(library, shape, self.bits, self.order, self._table(dtype))

        def decode(loaded: Rows, batch: Rows) -> Mapping[int, str]:
            kernel(loaded[name], batch[name])
            return {}

        return decode


@final
@dataclass(frozen=True, slots=True)
class Dequantize(Decode):
    """Small codes times a scale that a block of neighbours shares.

    `code * scale` is rounded to float32 and then to `jax_dtype`, which is float16, bfloat16 or float32. Codes are int8,
    float8_e4m3fn or float8_e5m2. With `bits=4` they are declared as uint8 and hold two elements each, in two's
    complement, the first in the lower four bits; the declared last axis then counts bytes.

    Attributes:
        scales: name of the declared array with the scales: float16, bfloat16 or float32, in the shape of the decoded
            array with `ceil(width / block)` in place of its last axis `width`.
        block: elements along the last axis that share a scale; the last block of a line may be shorter.
        bits: of a code: 8 or 4.
    """

    scales: str
    block: int
    bits: Literal[8, 4] = 8

    def __post_init__(self) -> None:
        array_name("Dequantize: scales", self.scales)
        choice("Dequantize: bits", self.bits, (8, 4))
        object.__setattr__(self, "block", at_least("Dequantize: block", self.block, 1))
        if self.bits == 4 and self.block % 2:
            raise ValueError(
                f"Dequantize: got a block of {self.block}, wanted an even one, so that it begins with a byte"
            )

    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        from hydrax_gpu._kernels.dequantize import CODES, OUTPUTS, SCALES

        shape, source, wanted = declared[name]
        dtype_in("Dequantize", "numpy_dtype", source, ("uint8",) if self.bits == 4 else CODES)
        dtype_in("Dequantize", "jax_dtype", wanted, OUTPUTS)
        if not shape:
            raise ValueError("Dequantize: got shape (), wanted a last axis that is cut into blocks")
        decoded = (*shape[:-1], shape[-1] * 8 // self.bits)
        scales = companion("Dequantize: scales", self.scales, name, declared)
        dtype_in("Dequantize", f"numpy_dtype of {self.scales!r}", scales.dtype, SCALES)
        needed = (*decoded[:-1], -(-decoded[-1] // self.block))
        if scales.shape != needed:
            raise ValueError(
                f"Dequantize: array {self.scales!r} has shape {scales.shape}, wanted {needed}: one scale for each "
                f"block of {self.block} of {decoded}"
            )
        return {name: Kept(decoded, wanted, wanted)}

    def bind(
        self, library: Library | None, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]
    ) -> Bound:
        from hydrax_gpu._kernels.dequantize import Dequantize as Kernel

        shape, dtype, _ = outputs[name]
        scales = self.scales
        kernel = Kernel(library, shape, self.block, declared[name].dtype, declared[scales].dtype, dtype)

        def decode(loaded: Rows, batch: Rows) -> Mapping[int, str]:
            kernel(loaded[name], loaded[scales], batch[name])
            return {}

        return decode
