"""Runs all probes and writes the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hydrax_gpu._doctor import host, packages
from hydrax_gpu._doctor.finding import Finding

__all__ = ["Examination", "Probe", "examine"]

Probe = Callable[[], "list[Finding]"]

_MARKS = {"ok": "ok", "limited": "  --", "absent": "none", "failed": "FAIL"}
_ORDER = (
    "machine", "host memory", "CPU kernels", "open files", "memlock limit", "/dev/shm", "NVIDIA driver", "jax",
    "device memory", "CuPy", "pinning", "bandwidth", "nvImageCodec", "JPEG engine", "DALI", "GPUDirect Storage",
    "kvikio",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Examination:
    """What all probes found, in the order of the page."""

    findings: Sequence[Finding]

    @property
    def verdict(self) -> str:
        """In one sentence: how batches get to the device of this machine."""
        by_name = {finding.name: finding for finding in self.findings}

        def ok(name: str) -> bool:
            return name in by_name and by_name[name].state == "ok"

        if "jax" not in by_name or by_name["jax"].state in ("absent", "failed"):
            return "jax does not work here, so no batch can be made: see its line."
        if not ok("jax"):
            return "Batches are made on the CPU, from shared memory."
        if not ok("CuPy"):
            return "jax has a GPU, but the loader cannot use it itself: JAX copies batches from ordinary memory."
        if not ok("pinning"):
            return "The loader fills device memory, but from memory that is not pinned, which is slower."
        return "The loader fills device memory from pinned memory, on a stream of its own."

    def as_json(self) -> str:
        """For programs: `{"verdict": ..., "findings": [...]}`."""
        return json.dumps({"verdict": self.verdict, "findings": [each.as_json() for each in self.findings]}, indent=2)

    def __str__(self) -> str:
        lines: list[str] = []
        for finding in self.findings:
            head = f"{_MARKS[finding.state].strip():4}  {finding.name:18}"
            lines += textwrap.wrap(f"{head} {finding.text}", 110, subsequent_indent=" " * 25) or [head]
            if finding.fix:
                lines += textwrap.wrap(f"fix: {finding.fix}", 110, initial_indent=" " * 25, subsequent_indent=" " * 30)
        return "\n".join([*lines, "", self.verdict])


def examine(probes: Mapping[str, Probe] | None = None, *, timeout: float = 120.0) -> Examination:
    """Looks at everything.

    Args:
        probes: by name; by default all there are. Those of packages run in processes of their own.
        timeout: seconds after which such a process is given up.
    """
    if probes is None:
        probes = {probe.__name__: _listed(probe) for probe in host.PROBES}
        probes |= {name: _in_process(name, timeout) for name in packages.PROBES}
    # CuPy measures bandwidths, and jax takes most of the device's memory: one after the other where there is a GPU
    with ThreadPoolExecutor(1 if os.path.exists("/dev/nvidiactl") else len(probes)) as pool:
        found = list(pool.map(_guarded, probes.items()))
    findings = [finding for some in found for finding in some]
    order = {name: number for number, name in enumerate(_ORDER)}
    return Examination(sorted(findings, key=lambda finding: order.get(finding.name, len(order))))


def _listed(probe: Callable[[], Finding]) -> Probe:
    return lambda: [probe()]


def _guarded(named: tuple[str, Probe]) -> list[Finding]:
    name, probe = named
    try:
        return probe()
    except Exception as error:
        text = f"looking at it raised {type(error).__name__}: {error}"
        return [Finding(name, "failed", text, "if the reason is not plain, this is a defect of hydrax_gpu: report it")]


def _in_process(name: str, timeout: float) -> Probe:
    def run() -> list[Finding]:
        command = [sys.executable, "-m", "hydrax_gpu._doctor.packages", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            fix = f"try `python -c 'import {name}'`; a driver that hangs needs a reboot"
            return [Finding(name, "failed", f"importing it did not end within {timeout:g} seconds", fix)]
        return read_findings(name, done.returncode, done.stdout, done.stderr)

    return run


def read_findings(name: str, status: int, out: str, err: str) -> list[Finding]:
    """What a probe's process has printed, or how it ended."""
    lines = out.strip().splitlines()
    if status == 0 and lines:
        return [Finding(**each) for each in json.loads(lines[-1])["findings"]]
    how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    last = (err.strip().splitlines() or ["no message"])[-1][:300]
    fix = f"see `{os.path.basename(sys.executable)} -m hydrax_gpu._doctor.packages {name}`"
    return [Finding(name, "failed", f"looking at it {how}: {last}", fix)]
