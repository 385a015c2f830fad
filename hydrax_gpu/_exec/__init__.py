"""Executors: what runs the loader function, in this thread, in other threads, or in worker processes."""

from hydrax_gpu._exec.inline import InlineExecutor as InlineExecutor
from hydrax_gpu._exec.procs import ProcessExecutor as ProcessExecutor
from hydrax_gpu._exec.protocol import Executor as Executor
from hydrax_gpu._exec.protocol import Failure as Failure
from hydrax_gpu._exec.protocol import Inbox as Inbox
from hydrax_gpu._exec.protocol import Result as Result
from hydrax_gpu._exec.protocol import Task as Task
from hydrax_gpu._exec.protocol import WorkerLost as WorkerLost
from hydrax_gpu._exec.protocol import WorkerReady as WorkerReady
from hydrax_gpu._exec.protocol import WorkSpec as WorkSpec
from hydrax_gpu._exec.threads import ThreadExecutor as ThreadExecutor
