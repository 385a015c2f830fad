"""Memory: mapped regions, the arena of slots carved out of one, and the state machine of a slot."""

from hydrax_gpu._mem.arena import Arena as Arena
from hydrax_gpu._mem.mapping import Mapping as Mapping
from hydrax_gpu._mem.mapping import attach as attach
from hydrax_gpu._mem.mapping import create as create
from hydrax_gpu._mem.slots import SlotState as SlotState
from hydrax_gpu._mem.slots import SlotTable as SlotTable
