"""The cache's files: a store of entries on disk that any number of processes fill and read at once.

An entry is one item's arrays and its additional data, found by its key; see `store`. Nothing here needs jax, and the
packages of the extra "cache" are imported when a store is opened.
"""

from hydrax_gpu._cache.descriptor import ArrayFormat as ArrayFormat
from hydrax_gpu._cache.descriptor import Descriptor as Descriptor
from hydrax_gpu._cache.fingerprint import fingerprint as fingerprint
from hydrax_gpu._cache.keys import Keys as Keys
from hydrax_gpu._cache.store import ReadResult as ReadResult
from hydrax_gpu._cache.store import Stats as Stats
from hydrax_gpu._cache.store import Store as Store
from hydrax_gpu._cache.store import StoreSpec as StoreSpec
