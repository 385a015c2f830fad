"""The order of a run as arithmetic: position → group, epoch, batch, items, seeds. Pure, and without I/O."""

from hydrax_gpu._plan.groups import GroupPlan as GroupPlan
from hydrax_gpu._plan.groups import Remainder as Remainder
from hydrax_gpu._plan.groups import ShuffleLater as ShuffleLater
from hydrax_gpu._plan.groups import ValidationPlan as ValidationPlan
from hydrax_gpu._plan.order import permute as permute
from hydrax_gpu._plan.owners import owned_rows as owned_rows
from hydrax_gpu._plan.plan import JSON as JSON
from hydrax_gpu._plan.plan import ORDER_VERSION as ORDER_VERSION
from hydrax_gpu._plan.plan import BatchPlan as BatchPlan
from hydrax_gpu._plan.plan import Plan as Plan
from hydrax_gpu._plan.rows import Share as Share
from hydrax_gpu._plan.rows import block_of as block_of
from hydrax_gpu._plan.rows import union as union
from hydrax_gpu._plan.schedule import exact_ratios as exact_ratios
from hydrax_gpu._plan.seeds import batch_seed as batch_seed
from hydrax_gpu._plan.seeds import item_seeds as item_seeds
from hydrax_gpu._plan.state import OWN as OWN
from hydrax_gpu._plan.state import STATE_VERSION as STATE_VERSION
from hydrax_gpu._plan.state import common_part as common_part
from hydrax_gpu._plan.state import from_state as from_state
from hydrax_gpu._plan.state import merge_states as merge_states
from hydrax_gpu._plan.state import to_state as to_state
