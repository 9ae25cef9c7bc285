"""What is left of memory: made-up trees of /proc and /sys, and the kernel's own limits."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eri_runtime.memory import available as module
from eri_runtime.memory.available import AvailableMemory, available_memory

MB = 10**6
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"
LINUX = sys.platform.startswith("linux")


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def machine(root, available=16_000_000):
    """/proc of a machine with so many kB, where nothing limits a process."""
    return write(
        root,
        {
            "proc/meminfo": f"MemTotal: 32000000 kB\nMemFree: 5 kB\nMemAvailable: {available} kB\n",
            "proc/self/status": "VmPeak:\t9 kB\nVmSize:\t 1000 kB\nVmData:\t 400 kB\n",
            "proc/self/limits": limits("unlimited", "unlimited"),
        },
    )


def limits(space, data):
    return (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        f"Max data size             {data}            unlimited            bytes     \n"
        f"Max address space         {space}            unlimited            bytes     \n"
    )


def v2(root, group, **files):
    write(root, {f"{V2}/{group}/memory.{name}": text for name, text in files.items()})


def v1(root, group, limit, used, **stat):
    lines = "".join(f"{name} {value}\n" for name, value in stat.items())
    folder = f"{V1}/{group}"
    write(
        root,
        {
            f"{folder}/memory.limit_in_bytes": f"{limit}\n",
            f"{folder}/memory.usage_in_bytes": f"{used}\n",
            f"{folder}/memory.stat": lines,
        },
    )


def in_v2(root, path):
    mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
    return write(root, {"proc/self/mounts": mounts, "proc/self/cgroup": f"0::{path}\n"})


def in_v1(root, path):
    mounts = (
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n"
    )
    text = f"9:name=systemd:/\n4:memory:{path}\n1:cpu:/elsewhere\n"
    return write(root, {"proc/self/mounts": mounts, "proc/self/cgroup": text})


def test_without_limits_it_is_what_the_machine_has(tmp_path):
    assert available_memory(machine(tmp_path, 1234)) == AvailableMemory(
        bytes=1234 * 1024, limit="memory of the machine"
    )


def test_where_nothing_can_be_read_it_is_unknown(tmp_path):
    assert available_memory(tmp_path) is None


def test_elsewhere_than_on_linux_it_is_unknown(monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert available_memory() is None


def test_a_group_of_v2_counts_its_cache_of_files_as_free(tmp_path):
    in_v2(machine(tmp_path), "/user/job")
    stat = f"anon 5\ninactive_file {20 * MB}\nactive_file {10 * MB}\nshmem {7 * MB}\n"
    v2(tmp_path, "user/job", max=f"{500 * MB}\n", high="max\n", current=f"{130 * MB}\n", stat=stat)
    found = available_memory(tmp_path)
    assert found == AvailableMemory(bytes=400 * MB, limit="memory.max of cgroup /user/job")


def test_a_group_of_v2_is_throttled_from_its_high_on(tmp_path):
    in_v2(machine(tmp_path), "/job")
    v2(tmp_path, "job", max=f"{500 * MB}", high=f"{300 * MB}", current=f"{100 * MB}")
    assert available_memory(tmp_path) == AvailableMemory(
        bytes=200 * MB, limit="memory.high of cgroup /job"
    )


def test_the_nearest_limit_may_be_an_ancestors(tmp_path):
    in_v2(machine(tmp_path), "/a/b/c")
    v2(tmp_path, "a/b/c", max="max", high="max", current=f"{50 * MB}")
    v2(tmp_path, "a/b", max=f"{900 * MB}", current=f"{100 * MB}")
    v2(tmp_path, "a", max=f"{1000 * MB}", current=f"{700 * MB}")
    assert available_memory(tmp_path) == AvailableMemory(
        bytes=300 * MB, limit="memory.max of cgroup /a"
    )


def test_a_group_of_v1_and_its_ancestor(tmp_path):
    in_v1(machine(tmp_path), "/docker/1")
    own = {"inactive_file": 1, "total_inactive_file": 30 * MB, "total_active_file": 10 * MB}
    v1(tmp_path, "docker/1", 400 * MB, 140 * MB, **own)
    v1(tmp_path, "docker", 2000 * MB, 1900 * MB, total_inactive_file=200 * MB)
    v1(tmp_path, "", 9223372036854771712, 5000 * MB)
    name = "memory.limit_in_bytes of cgroup /docker"
    assert available_memory(tmp_path) == AvailableMemory(bytes=300 * MB, limit=f"{name}/1")
    v1(tmp_path, "docker", 2000 * MB, 1900 * MB)
    assert available_memory(tmp_path) == AvailableMemory(bytes=100 * MB, limit=name)


def test_a_container_that_is_told_its_path_outside_reads_the_root(tmp_path):
    in_v1(machine(tmp_path), "/kubepods/pod1/abc")
    v1(tmp_path, "", 600 * MB, 200 * MB)
    found = available_memory(tmp_path)
    assert found == AvailableMemory(bytes=400 * MB, limit="memory.limit_in_bytes of cgroup /")


def test_a_group_that_is_over_its_limit_has_nothing_left(tmp_path):
    in_v2(machine(tmp_path), "/job")
    v2(tmp_path, "job", max=f"{100 * MB}", current=f"{130 * MB}")
    assert available_memory(tmp_path).bytes == 0


@pytest.mark.parametrize(
    ("space", "data", "expected", "name"),
    [(9_000_000, "unlimited", 9_000_000 - 1_024_000, "-v"), (9_000_000, 700_000, 290_400, "-d")],
)
def test_a_process_may_be_limited_by_itself(tmp_path, space, data, expected, name):
    write(machine(tmp_path), {"proc/self/limits": limits(space, data)})
    assert available_memory(tmp_path) == AvailableMemory(bytes=expected, limit=f"ulimit {name}")


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_group_never_has_less_than_nothing_nor_more_than_its_limit(limit, used, cache):
    found = module._group(limit, used, cache, "x").bytes
    assert 0 <= found <= limit
    assert found >= min(limit, limit - used if limit > used else 0)


@pytest.mark.skipif(not LINUX, reason="/proc is Linux's")
def test_a_limit_of_this_system_is_read():
    code = "from eri_runtime.memory.available import available_memory\n"
    code += "found = available_memory(); print(found.bytes, found.limit)"
    most = 3_000_000_000

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    found = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=limit,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        check=True,
    ).stdout
    count, _, name = found.strip().partition(" ")
    assert 0 < int(count) < most
    assert name == "ulimit -d" or int(count) < most / 2  # of a machine that has less


@pytest.fixture
def group():
    """A control group of this system, to be limited; skipped where none may be made."""
    (own,) = [
        line.rpartition(":")[2]
        for line in module.text_lines(Path("/proc/self/cgroup"))
        if line.split(":")[1] == "memory"
    ] or [None]
    if own is None:
        pytest.skip("no control groups of v1 for memory")
    folder = Path("/") / V1 / own.strip("/") / f"test-left-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no control group can be made")
    yield folder
    folder.rmdir()


def test_a_control_group_of_this_system_is_read(group):
    limit = 200 * MB // 4096 * 4096
    (group / "memory.limit_in_bytes").write_text(str(limit))
    code = (
        "import os, sys\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from eri_runtime.memory.available import available_memory\n"
        "before = available_memory()\n"
        f"held = b'x' * {50 * MB}\n"
        "print(before.bytes, available_memory().bytes, before.limit)\n"
    )
    command = [sys.executable, "-c", code, str(group / "cgroup.procs")]
    found = subprocess.run(command, text=True, capture_output=True, check=True).stdout.split(" ", 2)
    before, after = int(found[0]), int(found[1])
    assert 0 < before < limit
    assert before - after == pytest.approx(50 * MB, rel=0.2)  # the kernel counts in batches
    assert group.name in found[2]
