"""Whole scripts that are timed from the start of their process."""
