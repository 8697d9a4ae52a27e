"""Which tests the targets of the Makefile run, and continuous integration with them; what they see; and what
``.ci/stacks`` does where a stack cannot be made.

The environment's commands answer as each case says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / ".ci" / "stacks"
COMMANDS = {
    "qharness": 'case " $BROKEN " in *" $3 "*) exit 2;; esac',  # qharness stack create NAME
    "python": 'if [ "$1" = -c ]; then exec $PINS; fi; [ "$*" = "-m pip index versions pip" ] && exec $INDEX',
}


@pytest.mark.parametrize(
    ("broken", "index", "pins", "compiler", "tested", "code"),
    [
        ("", "false", "true", "c++", "vllm llamacpp autoawq", 7),
        ("vllm", "false", "true", "c++", "llamacpp autoawq", 7),
        ("llamacpp", "false", "true", "c++", "vllm autoawq", 7),
        ("vllm llamacpp autoawq", "false", "true", "c++", None, 0),
        ("vllm", "true", "true", "c++", None, 1),  # a wrong pin
        ("llamacpp", "true", "true", "c++", None, 1),
        ("vllm", "true", "false", "c++", "llamacpp autoawq", 7),
        ("llamacpp", "true", "true", "", "vllm autoawq", 7),
        ("autoawq", "false", "false", "", None, 0),
    ],
)
def test_a_stack_that_cannot_be_made_skips_its_own_tests_alone(
    tmp_path: Path, broken: str, index: str, pins: str, compiler: str, tested: str | None, code: int
) -> None:
    """The tests, a command that ends with code 7, run for the stacks that were made."""
    for folder in (".ci", ".venv/bin", "path"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / ".ci")
    for name, code_of_it in COMMANDS.items():
        command = tmp_path / ".venv" / "bin" / name
        command.write_text(f"#!/bin/sh\n{code_of_it}\n")
        command.chmod(0o755)
    for name in ("sh", "bash", "dirname", "true", "false"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "path" / name).symlink_to(found)
    variables = {"PATH": str(tmp_path / "path"), "CXX": compiler, "BROKEN": broken, "INDEX": index, "PINS": pins}
    tests = ["sh", "-c", "echo tested $QHARNESS_MADE_STACKS; exit 7"]
    ended = subprocess.run(
        [tmp_path / ".ci" / "stacks", *tests], env=variables, capture_output=True, text=True, check=False
    )
    if tested is None:
        assert "tested" not in ended.stdout
    else:
        assert ended.stdout.splitlines()[-1] == f"tested {tested}"
    assert ended.returncode == code, ended.stderr
    assert ("skipped" in ended.stdout) == (code != 1 and tested != "vllm llamacpp autoawq")


def test_tests_see_no_gpu() -> None:
    """Those of 'make test-gpu' alone do: nothing else here may depend on the machine's GPUs, nor load them."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def selections() -> dict[str, str]:
    """By target of the Makefile: the marks by which it selects tests. ``faults`` selects a folder's."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = dict(re.findall(r'^([a-z-]+):[^\n]*\n\t[^\n]* -m "?([a-z ]+)"?(?: -rs)?$', makefile, re.MULTILINE))
    del found["faults"]
    return found


@pytest.mark.parametrize("kinds", [(), ("heavy",), ("thorough",), ("heavy", "thorough")])
@pytest.mark.parametrize(
    ("apart", "target"), [(None, None), ("slow", "test-slow"), ("stack", "test-stacks"), ("gpu", "test-gpu")]
)
def test_each_test_is_run_by_one_target_alone(kinds: tuple[str, ...], apart: str | None, target: str | None) -> None:
    marks = {*kinds, apart}
    names = ("heavy", "thorough", "slow", "stack", "gpu")
    runs = [each for each, marked in selections().items() if eval(marked, {name: name in marks for name in names})]
    assert runs == [target or ("test-thorough" if "thorough" in kinds else "test" if "heavy" in kinds else "light")]


def test_selections_are_those_for_which_modules_are_left_alone() -> None:
    conftest = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    for name, target in (("LIGHT", "light"), ("HEAVY", "test"), ("THOROUGH", "test-thorough")):
        assert f'\n{name} = "{selections()[target]}"\n' in conftest


def test_continuous_integration_runs_all_tests_but_slow_ones_and_those_of_a_gpu() -> None:
    """``make test`` begins with ``make check``."""
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert commands[-3:] == ["make test", "make test-thorough", "make test-stacks"]
    assert "\ntest: setup-all check " in (ROOT / "Makefile").read_text(encoding="utf-8")
