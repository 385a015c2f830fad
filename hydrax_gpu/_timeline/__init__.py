"""`hydrax-gpu report`: a trace read, judged and drawn."""

from hydrax_gpu._timeline.command import report as report
