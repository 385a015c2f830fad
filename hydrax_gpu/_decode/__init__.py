"""Decodes one picture, or the needed part of it, into a buffer that is used again. Imports no jax.

| module | does |
|---|---|
| `draws` | crop boxes and flips: pure functions of the seed |
| `geometry` | boxes between the upright picture, the stored one and its reduced forms |
| `reading` | a file into a buffer that is kept |
| `jpeg` | what a JPEG file says of itself before it is decoded |
| `turbo`, `simple`, `pillow` | decoders, one a module |
| `quick` | the common case, an ordinary JPEG file, from end to end in one call |
| `chain` | which of them reads a picture, and who comes after one that cannot |
"""
