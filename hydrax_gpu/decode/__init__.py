"""What becomes of an array between the loader function and the batch: `ArraySpec(..., decode=...)`.

The loader function writes an array in the shape and dtype that are declared; its decode says what the batch holds
instead. The workers carry it out on the rows that they have loaded. Definitions are in the documentation's page on
kernels, down to the last bit.

The classes are public as `hydrax_gpu.Normalize` and so on. Nothing is imported here: a worker pays for the ones that it
uses.
"""
