"""Every fault of the matrix is made in a real sweep, which is then resumed."""

from __future__ import annotations

import pytest
from bench import SMALL
from matrix import MATRIX, RUNS, Fault

pytestmark = pytest.mark.heavy(minutes=1)


FEW = ("sigterm", "memory-limit", "results-full", "artifact-flipped")
"""Those of 'make test', one of each kind: a signal, no memory, a full disk, damage."""


def _marked(fault: Fault) -> object:
    marks = [pytest.mark.slow] if fault.slow else [pytest.mark.thorough] * (fault.name not in FEW)
    if fault.unmended:
        marks.append(pytest.mark.xfail(strict=True, raises=AssertionError, reason=fault.unmended))
    return pytest.param(fault, id=fault.name, marks=marks)


@pytest.mark.parametrize("fault", [_marked(fault) for fault in MATRIX])
def test_a_fault_costs_what_the_matrix_says(fault: Fault, make_bench, undisturbed, count) -> None:
    bench = make_bench(SMALL)
    ended = fault.make(bench)
    assert ended.code == fault.exit_code, ended.output
    assert "Traceback" not in ended.output
    assert fault.message in ended.output
    assert bench.processes() == []
    recorded = bench.statuses()
    assert tuple(recorded.get(run) for run in RUNS) == fault.recorded
    resumed = bench.run()
    assert resumed.code == 0, resumed.output
    assert resumed.made == fault.remade
    bench.check(undisturbed(SMALL), fault.again)
    count(fault.name, 1)
