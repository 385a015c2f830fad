"""Placement: from the bytes of a slot to `jax.Array`s. The only private package that imports jax."""

from hydrax_gpu._place.annotate import annotated as annotated
from hydrax_gpu._place.annotate import profiled as profiled
from hydrax_gpu._place.backends import possible as possible
from hydrax_gpu._place.jaxio import prepare as prepare
from hydrax_gpu._place.placer import Placement as Placement
from hydrax_gpu._place.placer import PlacementFunc as PlacementFunc
from hydrax_gpu._place.placer import Placer as Placer
from hydrax_gpu._place.placer import may_take_files as may_take_files
from hydrax_gpu._place.sharded import ShardedPlacer as ShardedPlacer
from hydrax_gpu._place.shards import Sharding as Sharding
from hydrax_gpu._place.shards import Shards as Shards
