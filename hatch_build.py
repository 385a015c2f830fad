"""Builds the kernels' host library when the package is installed, if there is a C++ compiler."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_HOME = Path(__file__).resolve().parent / "hydrax_gpu" / "_kernels"


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library to a wheel, whose tag then names the platform; without one the wheel is for any."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        sys.path.insert(0, str(_HOME))  # the package itself cannot be imported here: it needs NumPy
        try:
            import build
            import sources
        finally:
            sys.path.remove(str(_HOME))
        if version == "standard":  # an editable install reads them where they are
            for path in sorted(sources.folder().iterdir()):
                build_data["force_include"][str(path)] = f"hydrax_gpu/kernels/{path.name}"
        if not build.is_current():
            sources.LIBRARY.unlink(missing_ok=True)
            try:
                build.build()
            except build.BuildError as error:
                self.app.display_warning(f"the kernels' host library was not built, NumPy does their work: {error}")
                return
        if version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{build.platform_tag()}"
            build_data["force_include"][str(sources.LIBRARY)] = f"hydrax_gpu/_kernels/lib/{sources.LIBRARY.name}"
