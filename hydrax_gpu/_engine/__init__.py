"""The engine: a pure core, the runner that carries out its effects, and the consumer's stream. See README.md."""

from hydrax_gpu._engine.autotune import Autotune as Autotune
from hydrax_gpu._engine.cached import NoCaching as NoCaching
from hydrax_gpu._engine.core import Core as Core
from hydrax_gpu._engine.core import CoreConfig as CoreConfig
from hydrax_gpu._engine.entries import Dropped as Dropped
from hydrax_gpu._engine.entries import WorkerDeath as WorkerDeath
from hydrax_gpu._engine.faults import FaultRules as FaultRules
from hydrax_gpu._engine.inbox import EpollInbox as EpollInbox
from hydrax_gpu._engine.runner import Runner as Runner
from hydrax_gpu._engine.signals import InterruptGuard as InterruptGuard
from hydrax_gpu._engine.stages import StageClock as StageClock
from hydrax_gpu._engine.stream import Stream as Stream
from hydrax_gpu._engine.stream import close_at_exit as close_at_exit
from hydrax_gpu._engine.stream import positions_after as positions_after
from hydrax_gpu._engine.stream import running_streams as running_streams
from hydrax_gpu._engine.tracing import TraceSink as TraceSink
from hydrax_gpu._engine.tuning import Limits as Limits
from hydrax_gpu._engine.tuning import Setting as Setting
from hydrax_gpu._engine.tuning import Tuner as Tuner
from hydrax_gpu._engine.watch import holders as holders
