"""Ready loader functions. Importing this package imports neither jax nor any decoder."""

from hydrax_gpu.loaders.images import CenterCrop as CenterCrop
from hydrax_gpu.loaders.images import ImageDeclaration as ImageDeclaration
from hydrax_gpu.loaders.images import ImageLoader as ImageLoader
from hydrax_gpu.loaders.images import RandomResizedCrop as RandomResizedCrop

__all__ = ["CenterCrop", "ImageDeclaration", "ImageLoader", "RandomResizedCrop"]
