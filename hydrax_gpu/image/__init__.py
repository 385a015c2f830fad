"""Pictures by Pillow: open them in sRGB, write them into declared arrays, convert colours. Needs the `image` extra.

The names and the meanings are those of `hydrax.image`. `hydrax_gpu.loaders.ImageLoader` does the usual training work
(decode, crop, resize, flip, normalise) in much less time; these functions are for loader functions of one's own:

    def load(path, arrays, seed):
        picture = open_srgb(path)
        write_hwc(picture.resize((224, 224)), arrays["image"], Coefs.IMAGENET_SRGB)

An array is in HWC when its axes are height, width and channels, and in CHW when channels come first. "Fractional"
values go from 0 to 1, "balanced" ones from -scale to scale, those of a picture from 0 to 255.
"""

try:
    import PIL as _pillow
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "hydrax_gpu.image needs Pillow, which is not installed: pip install Pillow, or the extra hydrax-gpu[image]",
        name="PIL",
    ) from _error

from hydrax_gpu.image._arrays import from_srgb_hwc as from_srgb_hwc
from hydrax_gpu.image._arrays import write_chw as write_chw
from hydrax_gpu.image._arrays import write_hwc as write_hwc
from hydrax_gpu.image._coefs import Coefs as Coefs
from hydrax_gpu.image._colours import convert_balanced_to_frac_chw as convert_balanced_to_frac_chw
from hydrax_gpu.image._colours import convert_balanced_to_frac_hwc as convert_balanced_to_frac_hwc
from hydrax_gpu.image._colours import convert_frac_to_balanced_chw as convert_frac_to_balanced_chw
from hydrax_gpu.image._colours import convert_frac_to_balanced_hwc as convert_frac_to_balanced_hwc
from hydrax_gpu.image._colours import convert_oklab_to_srgb_frac_chw as convert_oklab_to_srgb_frac_chw
from hydrax_gpu.image._colours import convert_oklab_to_srgb_frac_hwc as convert_oklab_to_srgb_frac_hwc
from hydrax_gpu.image._colours import convert_srgb_to_oklab_frac_chw as convert_srgb_to_oklab_frac_chw
from hydrax_gpu.image._colours import convert_srgb_to_oklab_frac_hwc as convert_srgb_to_oklab_frac_hwc
from hydrax_gpu.image._opening import CONVERT_PERCEPTUAL as CONVERT_PERCEPTUAL
from hydrax_gpu.image._opening import CONVERT_RELATIVE as CONVERT_RELATIVE
from hydrax_gpu.image._opening import open_srgb as open_srgb
from hydrax_gpu.image._opening import set_max_image_pixels as set_max_image_pixels

__all__ = [
    "CONVERT_PERCEPTUAL",
    "CONVERT_RELATIVE",
    "Coefs",
    "convert_balanced_to_frac_chw",
    "convert_balanced_to_frac_hwc",
    "convert_frac_to_balanced_chw",
    "convert_frac_to_balanced_hwc",
    "convert_oklab_to_srgb_frac_chw",
    "convert_oklab_to_srgb_frac_hwc",
    "convert_srgb_to_oklab_frac_chw",
    "convert_srgb_to_oklab_frac_hwc",
    "from_srgb_hwc",
    "open_srgb",
    "set_max_image_pixels",
    "write_chw",
    "write_hwc",
]

del _pillow
