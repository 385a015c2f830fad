"""One measurement in its own process: `python -m benchmarks._run module:function '{"setting": 1}'`."""

from __future__ import annotations

import importlib
import json
import sys

from .accounts import emit


def main() -> None:
    target, settings = sys.argv[1:]
    module, function = target.split(":")
    emit(getattr(importlib.import_module(module), function)(**json.loads(settings)))


if __name__ == "__main__":
    main()
