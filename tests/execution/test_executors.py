"""Which executor a user's options choose; none is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.execution.executors import EXECUTORS, ExecutorChoice, open_executor
from harness.execution.local import LocalExecutor, local_site


def test_the_default_runs_on_this_machine(tmp_path: Path) -> None:
    site = local_site(tmp_path)
    assert open_executor(ExecutorChoice(), site) == LocalExecutor(site)


def test_an_unknown_executor_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown executor 'locla'; did you mean 'local'"):
        open_executor(ExecutorChoice("locla"), local_site(tmp_path))


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_entry_names_what_can_be_imported(name: str) -> None:
    from importlib import import_module

    module, _, function = EXECUTORS[name].opener.partition(":")
    assert callable(getattr(import_module(module), function))
