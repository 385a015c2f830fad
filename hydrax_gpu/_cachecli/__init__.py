"""`hydrax-gpu cache`: what is in a cache, whether it is good, and making it so."""

from hydrax_gpu._cachecli.commands import add_parser as add_parser
from hydrax_gpu._cachecli.commands import run as run
