"""What drifts in the processor, on made-up files of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.host import processor

OWN_SESSION, OTHER_SESSION = 50, 60


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cores, of which this process may use 0 and 1; ticks of 10 ms."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "stat").write_text(
        "cpu  0 0 0 0 0 0 0 0 0 0\n"
        "cpu0 100 20 30 400 50 6 7 8 90 9\n"  # 90 and 9 are guests', within 100 and 20
        "cpu1 200 0 0 300 0 0 0 2 0 0\n"
        "cpu2 9999 0 0 0 0 0 0 0 0 0\n"
        "intr 5 5\n"
    )
    process(tmp_path, 50, "python", OWN_SESSION, (70, 10, 4, 1))
    process(tmp_path, 51, "a) b (c", OWN_SESSION, (5, 5, 0, 0))
    process(tmp_path, 61, "other", OTHER_SESSION, (1000, 1000, 0, 0))
    (tmp_path / "99").mkdir()  # it ended while it was looked at
    (tmp_path / "meminfo").write_text("")
    monkeypatch.setattr(processor, "PROC", tmp_path)
    monkeypatch.setattr(processor, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 0})
    monkeypatch.setattr(os, "getsid", lambda pid: OWN_SESSION)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    return tmp_path


def process(folder: Path, pid: int, name: str, session: int, times: tuple[int, ...]) -> None:
    """A line as proc(5) has it: number, name, state, parent, group, session, seven more, then four times."""
    (folder / str(pid)).mkdir()
    fields = ["S", 1, pid, session, 0, -1, 0, 11, 22, 33, 44, *times, 20, 0]
    (folder / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")


def test_times_are_of_the_cores_that_may_be_used_and_of_the_own_session(kernel: Path) -> None:
    assert processor.processor_state() == pytest.approx(
        {
            "cpu_total_s": (621 + 502) / 100,
            "cpu_busy_s": (171 + 202) / 100,
            "cpu_steal_s": 10 / 100,
            "cpu_own_s": 95 / 100,
        }
    )


def test_throttling_and_frequency_are_told_where_they_can_be_read(kernel: Path) -> None:
    for core, throttled, khz in ((0, "3", "2000000"), (1, "4", "3000000"), (2, "100", "9000000")):
        for name, text in (("thermal_throttle/core_throttle_count", throttled), ("cpufreq/scaling_cur_freq", khz)):
            path = kernel / "cpu" / f"cpu{core}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
    state = processor.processor_state()
    assert (state["cpu_throttle_count"], state["cpu_mhz"]) == (7, 2500)
    (kernel / "cpu/cpu1/cpufreq/scaling_cur_freq").write_text("<unknown>\n")
    assert processor.processor_state()["cpu_mhz"] == 2000


def test_without_the_kernels_files_nothing_is_told(kernel: Path) -> None:
    (kernel / "stat").unlink()
    assert processor.processor_state() == {}


def test_work_of_this_process_is_its_own() -> None:
    """On the real kernel, where there is one: what is done here is in the busy time and in the own time."""
    before = processor.processor_state()
    if not before:
        pytest.skip("no /proc/stat")
    began = os.times()
    while os.times().user - began.user < 0.1:
        sum(range(10_000))
    after = processor.processor_state()
    assert after["cpu_own_s"] - before["cpu_own_s"] >= 0.08
    assert after["cpu_total_s"] > before["cpu_total_s"]


def test_instruction_sets_are_those_of_the_first_core(kernel: Path) -> None:
    assert processor.instruction_sets() == ()
    (kernel / "cpuinfo").write_text("processor : 0\nflags\t\t: sse2 fpu avx2\n\nprocessor : 1\nflags : sse2\n")
    assert processor.instruction_sets() == ("avx2", "fpu", "sse2")


def test_a_process_without_a_number_here_is_not_of_this_run() -> None:
    """In a container a driver may give 0 for a process outside. To getsid, 0 is whoever calls."""
    assert processor.is_of_this_run(os.getpid())
    assert not processor.is_of_this_run(0)
