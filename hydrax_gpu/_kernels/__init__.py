"""The kernels' Python side: the NumPy twin that defines each, the host library, and the launch on a device.

A module a kernel, named as its source in `kernels/`. See `kernels/README.md`.
"""
