"""qharness: which quantization to ship, proved by numbers that hold up.

The public face. Every name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.analysis.recommend import recommend as recommend
    from harness.api.compare import compare as compare
    from harness.api.history import history as history
    from harness.execution.sweep import run_recipe as run
    from harness.planning.plan import plan as plan
    from harness.recipe import load_recipe as load_recipe
    from harness.report import write_report as write_report
    from harness.storage.store import load_results as load_results

_HOMES = {
    "compare": "harness.api.compare:compare",
    "history": "harness.api.history:history",
    "load_recipe": "harness.recipe:load_recipe",
    "load_results": "harness.storage.store:load_results",
    "plan": "harness.planning.plan:plan",
    "recommend": "harness.analysis.recommend:recommend",
    "run": "harness.execution.sweep:run_recipe",
    "write_report": "harness.report:write_report",
}
__all__ = ["compare", "history", "load_recipe", "load_results", "plan", "recommend", "run", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)
