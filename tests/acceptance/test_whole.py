"""Real runs of ``qharness selfcheck`` on a processor: with a small model here, and whole where there are minutes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from command_line import qharness

from harness.api import selfcheck as api
from harness.api.results import load_results
from harness.api.selfcheck import selfcheck
from harness.api.verify import verify

pytestmark = pytest.mark.heavy(minutes=0.2)

USER = "planted-alice"


def test_what_a_check_leaves_is_whole_and_names_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / USER
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "planted-token-0123456789")
    wanted = ("machine", "divergence and reload")
    monkeypatch.setattr(api, "CHECKS", tuple(check for check in api.CHECKS if check.name in wanted))
    checked = selfcheck(tmp_path / "out.zip", cache_root=home / "cache", doctor=f"{home} of {USER}")
    assert [each.verdict for each in checked.findings] == ["PASS"] * 5, checked.findings
    assert not list((home / "cache").glob(".selfcheck*"))
    with zipfile.ZipFile(checked.archive) as opened:
        for name in opened.namelist():
            content = opened.read(name)
            assert not re.search(rb"planted|" + str(tmp_path).encode(), content), name
        opened.extractall(tmp_path / "sent")
    assert {each.state for each in verify(tmp_path / "sent" / "results")} == {"ok"}
    frame = load_results(tmp_path / "sent" / "results" / "quality")
    assert {"none", "bnb-nf4", "rtn"} == set(frame.method)
    assert "bnb-nf4" in (tmp_path / "sent" / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_whole_check_runs_to_its_end_here(tmp_path: Path) -> None:
    """Twenty minutes, because other tests may run beside it."""
    ended = qharness("selfcheck", "--minutes", 20, "--out", tmp_path / "out.zip", "--cache", tmp_path / "cache")
    assert ended.returncode == 0, ended.stdout
    verdicts = [line.split()[0] for line in ended.stdout.splitlines() if line[:4] in ("PASS", "FAIL", "SKIP")]
    assert verdicts.count("PASS") >= 10
    assert len(verdicts) >= 16
