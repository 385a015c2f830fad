"""`hydrax-gpu preview`: what a batch holds, as a table and as a picture, without a training script around it."""

from hydrax_gpu._preview.command import preview as preview
