"""`Int8Blocks`: what a cache has kept in int8 becomes floats again, on the way to the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from hydrax_gpu._kernels.quantize import BLOCK, parts, record_nbytes
from hydrax_gpu.decode.base import Bound, Decode, Kept, Rows
from hydrax_gpu.decode.checks import dtype_in

if TYPE_CHECKING:
    from hydrax_gpu._kernels.host import Library

__all__ = ["Int8Blocks"]


@final
@dataclass(frozen=True, slots=True)
class Int8Blocks(Decode):
    """Records of `_kernels.quantize`, declared as uint8 of shape `(record_nbytes,)`, to floats.

    It is the work of `Dequantize` with the codes and scales of an item in one array, which is read, checked and copied
    to a device as one.

    Attributes:
        shape: of an item of the batch.
        dtype: of the values that were quantized: name of a NumPy dtype, for the cache's description.
    """

    shape: tuple[int, ...]
    dtype: str

    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        from hydrax_gpu._kernels.dequantize import OUTPUTS

        shape, source, wanted = declared[name]
        dtype_in("Int8Blocks", "numpy_dtype", source, ("uint8",))
        dtype_in("int8", "jax_dtype", wanted, OUTPUTS)
        needed = (record_nbytes(math.prod(self.shape)),)
        if shape != needed:
            raise ValueError(f"Int8Blocks: got shape {shape}, wanted {needed} for the record of {self.shape}")
        return {name: Kept(self.shape, wanted, wanted)}

    def bind(
        self, library: Library | None, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]
    ) -> Bound:
        import numpy as np

        from hydrax_gpu._kernels.dequantize import Dequantize as Kernel

        count = math.prod(self.shape)
        kernel = Kernel(library, (count,), BLOCK, np.dtype(np.int8), np.dtype(np.float32), outputs[name].dtype)

        def decode(loaded: Rows, batch: Rows) -> Mapping[int, str]:
            codes, scales = parts(loaded[name], count)
            kernel(codes, scales, batch[name].reshape(len(codes), count))
            return {}

        return decode
