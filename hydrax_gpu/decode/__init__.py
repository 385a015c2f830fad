"""What becomes of an array between the loader function and the batch: `ArraySpec(..., decode=...)`.

The loader function writes an array in the shape and dtype that are declared; its decode says what the batch holds
instead. The workers carry it out on the rows that they have loaded. Definitions are in the documentation's page on
kernels, down to the last bit.
"""

from hydrax_gpu.decode.base import Decode as Decode
from hydrax_gpu.decode.base import Kept as Kept
from hydrax_gpu.decode.packed import Dequantize as Dequantize
from hydrax_gpu.decode.packed import UnpackBits as UnpackBits
from hydrax_gpu.decode.pictures import Normalize as Normalize
from hydrax_gpu.decode.pictures import Oklab as Oklab
from hydrax_gpu.decode.ragged import PadRagged as PadRagged

__all__ = ["Decode", "Dequantize", "Kept", "Normalize", "Oklab", "PadRagged", "UnpackBits"]
