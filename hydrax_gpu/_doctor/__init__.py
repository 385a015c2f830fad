"""`hydrax-gpu doctor`: what this machine can do for the loader, why not more, and how to get it."""

from hydrax_gpu._doctor.examine import Examination as Examination
from hydrax_gpu._doctor.examine import examine as examine
from hydrax_gpu._doctor.finding import Finding as Finding
