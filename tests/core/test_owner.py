"""Who owns what is temporary: a process is told from every other, also from a later one with its number."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core import owner
from harness.core.owner import Owner, current_owner, owner_in, temporary_folder

ODD = st.text("0123456789abcdef", min_size=6, max_size=6)
OWNERS = st.builds(Owner, st.integers(1, 2**22), st.integers(1, 2**60), ODD, ODD)


@given(OWNERS, st.sampled_from([".{}.part", "qharness-{}-ab12_cde", ".0123456789abcdef.qharness-{}-abcdef12.part"]))
def test_a_name_carries_its_owner(one: Owner, name: str) -> None:
    assert owner_in(name.format(one)) == one


@pytest.mark.parametrize(
    "name",
    [
        "qharness-kernels-1000-0123456789ab",
        "qharness-abcdefgh",
        ".0123456789abcdef.part",
        ".record.json.part",
        "x1-2-abcdef-abcdef",
        "1-2-abcdef-abcdef0",
        "1-2-ABCDEF-abcdef",
    ],
)
def test_other_names_carry_none(name: str) -> None:
    assert owner_in(name) is None


def test_this_process_lives_as_psutil_knows_it() -> None:
    here = current_owner()
    assert here.pid == os.getpid()
    assert here.state() == "living"
    if sys.platform == "linux":
        since_boot_s = psutil.Process().create_time() - psutil.boot_time()
        assert (
            abs(here.start / os.sysconf("SC_CLK_TCK") - since_boot_s) < 5
        )  # boot_time is in whole seconds, and moves with the clock


def test_a_process_that_ended_is_dead_also_before_its_parent_takes_note() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "from harness.core.owner import current_owner; print(current_owner())"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    one = owner_in(child.stdout.read())
    assert one is not None
    assert one.pid == child.pid
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert one.state() == "dead"
    child.wait()
    assert one.state() == "dead"


def test_a_later_process_with_the_same_number_is_another_owner() -> None:
    here = current_owner()
    assert replace(here, start=here.start - 1).state() == "dead"
    assert replace(here, boot="000000").state() == "dead"


def test_a_process_of_another_machine_cannot_be_judged() -> None:
    here = current_owner()
    assert replace(here, machine="000000").state() == "unknown"
    assert replace(here, machine="000000", boot="000000", start=1).state() == "unknown"


@pytest.mark.parametrize("without", ["machine-id", "namespace"])
def test_earlier_boots_are_judged_only_where_machines_cannot_be_confused(
    without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two boots of one machine have one identity; where it could be another machine, they have two."""
    files = {"/etc/machine-id": "" if without == "machine-id" else "a machine"}
    namespace = "pid:[4026532201]" if without == "namespace" else owner.INITIAL_NAMESPACE
    monkeypatch.setattr(os, "readlink", lambda path: namespace)

    def place(boot: str) -> tuple[str, str]:
        known = {**files, "/proc/sys/kernel/random/boot_id": boot}
        monkeypatch.setattr(owner, "_read", known.__getitem__)
        return owner._place()

    assert place("one")[1] != place("two")[1]
    files["/etc/machine-id"], namespace = "a machine", owner.INITIAL_NAMESPACE
    (one, here), (two, still_here) = place("one"), place("two")
    assert one != two
    assert here == still_here


def test_a_temporary_folder_names_its_owner_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        assert owner_in(folder.name) == current_owner()
        (folder / "file").write_text("x")
    assert not list(tmp_path.iterdir())
