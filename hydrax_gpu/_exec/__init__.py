"""Executors: what runs the loader function, in this thread, in other threads, or in worker processes.

Nothing is imported here: a worker process imports `_exec.worker_main`, and every module more is paid by each of them.
"""
