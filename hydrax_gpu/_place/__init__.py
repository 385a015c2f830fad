"""Placement: from the bytes of a slot to `jax.Array`s. The only private package that imports jax."""

from hydrax_gpu._place.annotate import annotated as annotated
from hydrax_gpu._place.jaxio import prepare as prepare
from hydrax_gpu._place.placer import Placement as Placement
from hydrax_gpu._place.placer import PlacementFunc as PlacementFunc
from hydrax_gpu._place.placer import Placer as Placer
