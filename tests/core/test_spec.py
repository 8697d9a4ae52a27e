"""What a spec says of itself."""

from __future__ import annotations

from dataclasses import replace

from harness.core.model import MethodRef, ModelRef
from harness.core.run import RunSpec, baseline_engine

NONE = MethodRef("none", 1, {}, "none", "none")
MODEL = ModelRef("m", "M", "0" * 64, "directory", "/m")
SPEC = RunSpec("quality", "r", MODEL, NONE, NONE, "llamacpp", "decoder")


def test_the_baseline_is_the_main_engines_where_it_runs_there() -> None:
    main, rounded = replace(SPEC, engine="transformers"), replace(SPEC, method=replace(NONE, name="rtn"))
    assert baseline_engine([SPEC, rounded, main]) == "transformers"
    assert baseline_engine([rounded, SPEC]) == "llamacpp"
    assert baseline_engine([rounded, replace(rounded, engine="transformers")]) is None


def test_a_title_names_what_is_not_the_usual() -> None:
    assert SPEC.title == "quality none · llamacpp"
    assert replace(SPEC, engine="transformers", kv_cache="fp8").title == "quality none · fp8 cache"
    assert replace(SPEC, kind="prepare").title == "prepare M"
