"""How much memory there is, as /proc, the control groups and the resource limits tell it, and its refusal."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._mem.limits import Room, check, room
from hydrax_gpu.errors import NotEnoughMemory

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
V1 = "sys/fs/cgroup/memory"
V2 = "sys/fs/cgroup"
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"
NONE_V1 = "9223372036854771712\n"


def limits_are(patch: pytest.MonkeyPatch, limits: dict[int, int]) -> None:
    patch.setattr(resource, "getrlimit", lambda number: (limits.get(number, resource.RLIM_INFINITY), -1))


@pytest.fixture(autouse=True)
def _no_limits_of_the_shell_that_runs_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    limits_are(monkeypatch, {})


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def group(folder: str, limit: object, used: int, stat: str = "", high: object = "max") -> dict[str, str | bytes]:
    """The files of a cgroup of version 2."""
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def group_v1(folder: str, limit: object, used: int, stat: str = "") -> dict[str, str | bytes]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": stat,
        f"{folder}/memory.use_hierarchy": "1\n",
    }


def found(root: Path, *, shared: bool = False) -> Room:
    tightest = room(shared=shared, root=root)
    assert tightest is not None
    return tightest


def test_the_memory_of_the_machine_is_what_is_available_and_not_what_is_free(tmp_path: Path) -> None:
    tightest = found(tree(tmp_path, {"proc/meminfo": MEMINFO}))
    assert (tightest.bytes, tightest.limit, tightest.used) == (8 * GIB, 16 * GIB, 8 * GIB)
    assert tightest.what == "memory of this machine (MemAvailable)"


def test_the_machine_is_the_tightest_of_its_limits_when_it_has_less_than_the_cgroup_allows(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/job\n", **group(f"{V2}/job", 12 * GIB, GIB)}
    assert found(tree(tmp_path, files)).what == "memory of this machine (MemAvailable)"


@pytest.mark.parametrize(("outer", "inner", "free", "name"), [(4, 6, 3, "/user.slice"), (6, 4, 2, "/user.slice/job")])
def test_the_tightest_of_nested_cgroups_counts(tmp_path: Path, outer: int, inner: int, free: int, name: str) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user.slice/job\n",
        **group(f"{V2}/user.slice", outer * GIB, GIB),
        **group(f"{V2}/user.slice/job", inner * GIB, 2 * GIB),
        **group(f"{V2}/user.slice/other", 0, 0),
    }
    tightest = found(tree(tmp_path, files))
    assert tightest.bytes == free * GIB
    assert tightest.what == f"memory limit of the cgroup {name} (memory.max)"


def test_the_cgroup_at_the_mount_counts_which_in_a_container_is_the_containers(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", **group(V2, 3 * GIB, GIB)}
    assert found(tree(tmp_path, files)) == Room(
        "memory limit of the cgroup / (memory.max)",
        3 * GIB,
        GIB,
        "raise that limit: docker run --memory, resources.limits.memory of the pod, sbatch --mem, MemoryMax= of the "
        "systemd unit",
    )


def test_a_cgroup_without_a_limit_limits_nothing(tmp_path: Path) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/job\n", **group(f"{V2}/job", "max", 20 * GIB)}
    assert found(tree(tmp_path, files)).bytes == 8 * GIB


def test_where_the_kernel_begins_to_slow_the_process_down_is_a_limit_too(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job\n", **group(f"{V2}/job", 4 * GIB, GIB, high=3 * GIB)}
    tightest = found(tree(tmp_path, files))
    assert (tightest.bytes, tightest.what) == (2 * GIB, "memory limit of the cgroup /job (memory.high)")
    assert tightest.fix.endswith("MemoryHigh= of the systemd unit")


def test_the_cache_of_files_can_be_had_back_and_shared_memory_cannot(tmp_path: Path) -> None:
    stat = (
        f"anon 1\nfile {3 * GIB}\nshmem {GIB}\ninactive_anon {GIB}\nactive_anon 0\ninactive_file {GIB}\n"
        f"active_file {GIB // 2}\nslab_reclaimable {GIB // 4}\nslab_unreclaimable 4096\n"
    )
    files = {"proc/self/cgroup": "0::/job\n", **group(f"{V2}/job", 4 * GIB, 4 * GIB, stat)}
    tightest = found(tree(tmp_path, files))
    assert tightest.bytes == GIB + GIB // 2 + GIB // 4
    assert tightest.limit - tightest.used == tightest.bytes


def test_more_cache_than_use_makes_no_more_room_than_the_limit(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job\n", **group(f"{V2}/job", GIB, 100, "inactive_file 4096\n")}
    assert found(tree(tmp_path, files)).bytes == GIB


def test_a_cgroup_that_is_over_its_limit_has_no_room(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job\n", **group(f"{V2}/job", GIB, 2 * GIB)}
    assert found(tree(tmp_path, files)).bytes == 0


def test_the_limit_counts_also_when_the_use_is_not_known(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"proc/self/cgroup": "0::/job\n", f"{V2}/job/memory.max": f"{GIB}\n"}
    assert found(tree(tmp_path, files)).bytes == GIB


def test_version_1_of_the_cgroups(tmp_path: Path) -> None:
    stat = f"inactive_file 7\nactive_file 7\ntotal_shmem {GIB}\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}\n"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpuset,cpu:/other\n4:memory:/slurm/job\n1:name=systemd:/x\n",
        **group_v1(V1, NONE_V1, 9 * GIB),
        **group_v1(f"{V1}/slurm", 7 * GIB, 5 * GIB),
        **group_v1(f"{V1}/slurm/job", 4 * GIB, 3 * GIB, stat),
        **group_v1(f"{V1}/other", 0, 0),
    }
    tightest = found(tree(tmp_path, files))
    assert (tightest.bytes, tightest.what) == (2 * GIB, "memory limit of the cgroup /slurm (memory.limit_in_bytes)")
    tree(tmp_path, {f"{V1}/slurm/memory.limit_in_bytes": NONE_V1})
    tightest = found(tmp_path)
    assert (tightest.bytes, tightest.what) == (3 * GIB, "memory limit of the cgroup /slurm/job (memory.limit_in_bytes)")


def test_in_version_1_a_cgroup_may_leave_those_inside_it_alone(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/outer/job\n",
        **group_v1(f"{V1}/outer", 1, 0),
        **group_v1(f"{V1}/outer/job", GIB, 0),
        f"{V1}/outer/memory.use_hierarchy": "0\n",
    }
    assert found(tree(tmp_path, files)).bytes == GIB


@pytest.mark.parametrize(
    ("path", "free", "name"),
    [
        ("/docker/0123abc", 2, "/docker/0123abc"),  # the host's name, of which nothing is mounted but the inside
        ("/docker/0123abc/inner", 1, "/docker/0123abc/inner"),
        ("/../../elsewhere", 2, "/"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_the_hosts_name_of_the_cgroup_leads_to_what_is_mounted(
    tmp_path: Path, version: int, path: str, free: int, name: str
) -> None:
    mount, line, one, file = (
        (V1, f"4:memory:{path}", group_v1, "limit_in_bytes") if version == 1 else (V2, f"0::{path}", group, "max")
    )
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": f"{line}\n",
        **one(mount, 4 * GIB, 2 * GIB),
        **one(f"{mount}/inner", 2 * GIB, GIB),
    }
    tightest = found(tree(tmp_path, files))
    assert (tightest.bytes, tightest.what) == (free * GIB, f"memory limit of the cgroup {name} (memory.{file})")


@pytest.mark.parametrize(("old", "new", "free"), [(2, "max", 2), (NONE_V1, 3, 3), (5, 4, 4)])
def test_both_versions_side_by_side(tmp_path: Path, old: int | str, new: int | str, free: int) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/job\n0::/job\n",
        **group_v1(f"{V1}/job", old * GIB if isinstance(old, int) else old, 0),
        **group(f"{V2}/unified/job", new * GIB if isinstance(new, int) else new, 0),
    }
    assert found(tree(tmp_path, files)).bytes == free * GIB


def test_nothing_to_read_is_no_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "proc/meminfo").mkdir(parents=True)  # a folder cannot be read, whoever tries
    with caplog.at_level(logging.DEBUG, "hydrax_gpu"):
        assert room(shared=True, root=tmp_path) is None
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    check(1 << 60, shared=True, what="nothing", root=tmp_path)


def test_the_limit_on_the_address_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits_are(monkeypatch, {resource.RLIMIT_AS: 3 * GIB})
    status = "Name:\tVmSize:\nVmPeak:\t 9999999 kB\nVmSize:\t 1048576 kB\nVmRSS:\t 1 kB\n"
    tightest = found(tree(tmp_path, {"proc/meminfo": MEMINFO, "proc/self/status": status}))
    assert (tightest.bytes, tightest.limit, tightest.used) == (2 * GIB, 3 * GIB, GIB)
    assert tightest.what == "limit on the address space (RLIMIT_AS)"


def test_the_limit_on_files_is_one_for_shared_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits_are(monkeypatch, {resource.RLIMIT_FSIZE: GIB})
    root = tree(tmp_path, {"proc/meminfo": MEMINFO})
    assert found(root).bytes == 8 * GIB
    assert (found(root, shared=True).bytes, found(root, shared=True).limit) == (GIB, GIB)


def test_resource_limits_that_cannot_be_asked_for_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> tuple[int, int]:
        raise OSError(f"no limit {number} here")

    monkeypatch.setattr(resource, "getrlimit", refuse)
    assert room(shared=True, root=tmp_path) is None


def test_what_fits_exactly_is_let_through_and_a_byte_more_is_not(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/meminfo": MEMINFO})
    check(8 * GIB, shared=True, what="2 slots", root=tmp_path)
    with pytest.raises(NotEnoughMemory) as caught:
        check(8 * GIB + 1, shared=True, what="2 slots", root=tmp_path)
    error = caught.value
    assert (error.needed, error.free, error.limit) == (8 * GIB + 1, 8 * GIB, "memory of this machine (MemAvailable)")
    assert str(error) == (
        "2 slots need 8,589,934,593 bytes, but the memory of this machine (MemAvailable) leaves 8,589,934,592. Lower "
        "depth or batch_size, make the arrays smaller, or end other programs on this machine. Of its 17,179,869,184 "
        "bytes, 8,589,934,592 are in use."
    )


def test_the_refusal_of_a_cgroup_names_the_numbers_and_where_to_raise_them(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/job\n",
        **group(f"{V2}/job", 64 << 20, 56 << 20, f"active_file {1 << 20}\n"),
    }
    with pytest.raises(MemoryError) as caught:
        check(37_748_736, shared=True, what="3 slots of 12,582,912 bytes", root=tree(tmp_path, files))
    assert str(caught.value) == (
        "3 slots of 12,582,912 bytes need 37,748,736 bytes, but the memory limit of the cgroup /job (memory.max) "
        "leaves 9,437,184. Lower depth or batch_size, make the arrays smaller, or raise that limit: docker run "
        "--memory, resources.limits.memory of the pod, sbatch --mem, MemoryMax= of the systemd unit. Of its 67,108,864 "
        "bytes, 57,671,680 are in use."
    )


def test_the_refusal_of_a_limit_on_files_says_why_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits_are(monkeypatch, {resource.RLIMIT_FSIZE: 1000})
    with pytest.raises(NotEnoughMemory) as caught:
        check(2000, shared=True, what="2 slots of 1,000 bytes", root=tmp_path)
    assert str(caught.value) == (
        "2 slots of 1,000 bytes need 2,000 bytes, but the limit on the size of a file (RLIMIT_FSIZE) leaves 1,000. "
        "Lower depth or batch_size, make the arrays smaller, or raise that limit: ulimit -f (memory that worker "
        "processes share counts as a file)."
    )


SIZES = st.integers(0, 1 << 50)


@given(
    machine=st.tuples(SIZES, SIZES),
    levels=st.lists(st.tuples(SIZES, SIZES, SIZES, SIZES), max_size=3),
    old=st.lists(st.tuples(SIZES, SIZES, SIZES), max_size=2),
    address_space=st.tuples(SIZES, SIZES),
    file_size=SIZES,
    shared=st.booleans(),
)
def test_there_is_never_more_room_than_any_limit_allows(
    machine: tuple[int, int],
    levels: list[tuple[int, int, int, int]],
    old: list[tuple[int, int, int]],
    address_space: tuple[int, int],
    file_size: int,
    shared: bool,
) -> None:
    total, available = (size // 1024 for size in machine)
    files: dict[str, str | bytes] = {
        "proc/meminfo": f"MemTotal: {total} kB\nMemAvailable: {available} kB\n",
        "proc/self/status": f"VmSize: {address_space[1] // 1024} kB\n",
        "proc/self/cgroup": f"4:memory:{'/a' * len(old) or '/'}\n0::{'/b' * len(levels) or '/'}\n",
    }
    bounds = [1024 * total, 1024 * available, address_space[0]]
    bounds.append(max(0, address_space[0] - address_space[1] // 1024 * 1024))
    for nth, (limit, high, used, cache) in enumerate(levels, start=1):
        files |= group(V2 + "/b" * nth, limit, used, f"inactive_file {cache}\n", high)
        bounds += [limit, high, max(0, limit - max(0, used - cache)), max(0, high - max(0, used - cache))]
    for nth, (limit, used, cache) in enumerate(old, start=1):
        files |= group_v1(V1 + "/a" * nth, limit, used, f"total_active_file {cache}\n")
        bounds += [limit, max(0, limit - max(0, used - cache))]
    if shared:
        bounds.append(file_size)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        limits_are(patch, {resource.RLIMIT_AS: address_space[0], resource.RLIMIT_FSIZE: file_size})
        tightest = found(tree(Path(folder), files), shared=shared)
    assert tightest.bytes == min(bounds)


WORDS = [
    *("MemTotal:", "MemAvailable:", "VmSize:", "inactive_file", "active_file", "kB", "max", "0::", "0::/a", "0::/.."),
    *("7:memory:", "1:cpu,memory:/a/b", "0::/a\0", "0::/" + "x" * 300, "0::" + "/y" * 3000, "\n", " ", ":"),
    *("0", "5", "-1", "1_0", "٣", "1e3", "18446744073709551615", "9" * 5000, "\x1c", "\ud7ff"),
]
LINES = st.lists(st.sampled_from(WORDS))
CONTENT = st.one_of(st.binary(max_size=64), LINES.map(lambda words: " ".join(words).encode()), LINES.map("".join))
FILES = [
    *("proc/meminfo", "proc/self/status", "proc/self/cgroup"),
    *(f"{V2}/{at}memory.{file}" for at in ("", "a/") for file in ("max", "high", "current", "stat")),
    *(f"{V1}/{at}memory.{file}" for at in ("", "a/b/") for file in ("limit_in_bytes", "usage_in_bytes", "stat")),
]


@given(st.dictionaries(st.sampled_from(FILES), CONTENT), st.integers(-1, 100), st.integers(0, 1 << 64))
def test_whatever_the_files_hold_nothing_else_is_ever_raised(
    files: dict[str, str | bytes], address_space: int, size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        limits_are(patch, {resource.RLIMIT_AS: address_space})
        tightest = room(shared=True, root=tree(Path(folder), files))
        assert tightest is None or 0 <= tightest.bytes <= tightest.limit
        try:
            check(size, shared=True, what="slots", root=Path(folder))
        except NotEnoughMemory as error:
            assert error.needed == size > error.free
        else:
            assert tightest is None or size <= tightest.bytes


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_this_machine_has_memory_and_no_more_than_is_built_in() -> None:
    tightest = found(Path("/"), shared=True)
    assert 0 < tightest.bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") and tightest.used > 0
    check(1, shared=True, what="a byte")
    with pytest.raises(NotEnoughMemory, match="leaves"):
        check(1 << 60, shared=False, what="too much")


@pytest.mark.parametrize(("limit", "shared"), [("RLIMIT_AS", False), ("RLIMIT_AS", True), ("RLIMIT_FSIZE", True)])
def test_the_kernel_refuses_what_we_refuse(limit: str, shared: bool) -> None:
    room_of_32_mib = "table['VmSize'] + (32 << 20)" if limit == "RLIMIT_AS" else "32 << 20"
    code = (
        "import resource\n"
        "from pathlib import Path\n"
        "from hydrax_gpu._mem import limits, mapping\n"
        "table = limits._table(Path('/proc/self/status'))\n"
        f"resource.setrlimit(resource.{limit}, ({room_of_32_mib}, -1))\n"
        f"limits.check(16 << 20, shared={shared}, what='little')\n"
        f"mapping.create(16 << 20, shared={shared}).close_fd()\n"
        "try:\n"
        f"    limits.check(64 << 20, shared={shared}, what='much')\n"
        "except limits.NotEnoughMemory as error:\n"
        "    print(error.limit)\n"
        "try:\n"
        f"    mapping.create(64 << 20, shared={shared})\n"
        "except MemoryError as error:\n"
        "    print(type(error).__name__)\n"
    )
    refused, kind = run(code).splitlines()
    assert limit in refused and kind == "MemoryError"


def test_asking_imports_neither_numpy_nor_jax() -> None:
    run(
        "import sys, hydrax_gpu._mem.limits as limits; limits.room(shared=True)\n"
        "assert not {'numpy', 'jax', 'subprocess', 'multiprocessing'} & set(sys.modules), sorted(sys.modules)"
    )
