"""qharness: which quantization to ship, proved by numbers that hold up.

The public face. Every name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api.bundle import bundle as bundle
    from harness.api.compare import compare as compare
    from harness.api.history import history as history
    from harness.api.plan import plan as plan
    from harness.api.pool import pool as pool
    from harness.api.recommend import recommend as recommend
    from harness.api.replay import replay as replay
    from harness.api.report import write_report as write_report
    from harness.api.results import load_results as load_results
    from harness.api.run import run as run
    from harness.recipe import load_recipe as load_recipe

_HOMES = {
    "bundle": "harness.api.bundle:bundle",
    "compare": "harness.api.compare:compare",
    "history": "harness.api.history:history",
    "load_recipe": "harness.recipe:load_recipe",
    "load_results": "harness.api.results:load_results",
    "plan": "harness.api.plan:plan",
    "pool": "harness.api.pool:pool",
    "recommend": "harness.api.recommend:recommend",
    "replay": "harness.api.replay:replay",
    "run": "harness.api.run:run",
    "write_report": "harness.api.report:write_report",
}
__all__ = [
    "bundle",
    "compare",
    "history",
    "load_recipe",
    "load_results",
    "plan",
    "pool",
    "recommend",
    "replay",
    "run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)
