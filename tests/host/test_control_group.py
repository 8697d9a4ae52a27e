"""Control groups as Linux shows them, in folders of the test: both versions, limits above and below, and none."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.host import control_group, machine

V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes what /proc/self/cgroup says, and the files of the groups by their path."""

    def write(lines: str, **files: str) -> None:
        (tmp_path / "cgroup").write_text(lines)
        for name, content in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    monkeypatch.setattr(control_group, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_group, "ROOT", tmp_path / "root")
    return write


def test_the_lowest_limit_on_the_way_up_holds(groups) -> None:
    groups("0::/pod/box\n", **{"pod/box/memory.max": "max\n", "pod/memory.max": "1000000\n"})
    assert list(control_group.memory_limits()) == [1_000_000]
    groups("0::/pod/box\n", **{"pod/box/cpu.max": "400000 100000\n", "pod/cpu.max": "150000 100000\n"})
    assert control_group.core_limit() == 1.5


def test_what_processes_hold_is_not_left_and_cached_files_are(groups) -> None:
    groups(
        "0::/pod/box\n",
        **{
            "pod/box/memory.max": "1000\n",
            "pod/box/memory.current": "700\n",
            "pod/box/memory.stat": "anon 400\ninactive_file 200\nactive_file 50\n",
            "pod/memory.max": "5000\n",
        },
    )
    assert list(control_group.memory_left()) == [550, 5000]
    assert machine.usable_memory_bytes() == 550
    groups(
        V1,
        **{
            "memory/docker/memory.limit_in_bytes": "100\n",
            "memory/docker/memory.usage_in_bytes": "90\n",
            "memory/docker/memory.stat": "inactive_file 5\ntotal_inactive_file 20\ntotal_active_file 10\n",
        },
    )
    assert list(control_group.memory_left()) == [40]


def test_no_limit_is_no_limit(groups) -> None:
    groups("0::/box\n", **{"box/cpu.max": "max 100000\n", "box/memory.max": "max\n"})
    assert control_group.core_limit() == float("inf")
    assert list(control_group.memory_limits()) == []
    groups(V1, **{"cpu/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"})
    assert control_group.core_limit() == float("inf")
    control_group.GROUPS.unlink()
    assert (control_group.core_limit(), control_group.oom_kills()) == (float("inf"), 0)


def test_the_first_version_has_a_folder_for_each_controller(groups) -> None:
    groups(
        V1,
        **{
            "cpu/docker/abc/cpu.cfs_quota_us": "250000\n",
            "cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            "memory/docker/memory.limit_in_bytes": "123\n",
            "memory/docker/abc/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        },
    )
    assert control_group.core_limit() == 2.5
    assert list(control_group.memory_limits()) == [123]
    assert control_group.oom_kills() == 3


def test_only_kills_in_its_own_group_count(groups) -> None:
    groups("0::/pod/box\n", **{"pod/memory.events": "oom_kill 9\n", "pod/box/memory.events": "low 0\noom_kill 2\n"})
    assert control_group.oom_kills() == 2


def test_a_container_has_the_memory_that_its_control_group_allows(groups) -> None:
    whole = machine.choose("cpu").memory_bytes
    groups("0::/\n", **{"memory.max": "1000000\n"})
    assert machine.choose("cpu").memory_bytes == 1_000_000 < whole
