"""Speed measurements, each beside the limit that the machine sets: `python -m benchmarks cpu`. See README.md."""
