"""What a spec says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_specs import MODEL, NONE, changed, run_spec

from harness.core.run import baseline_engine, titles_among

SPEC = run_spec("quality", engine="llamacpp")


def test_the_baseline_is_the_main_engines_where_it_runs_there() -> None:
    main, rounded = changed(SPEC, engine="transformers"), changed(SPEC, method=replace(NONE, name="rtn"))
    assert baseline_engine([SPEC, rounded, main]) == "transformers"
    assert baseline_engine([rounded, SPEC]) == "llamacpp"
    assert baseline_engine([rounded, changed(rounded, engine="transformers")]) is None


def test_a_title_names_what_is_not_the_usual() -> None:
    assert SPEC.title == "quality none · llamacpp"
    assert changed(SPEC, engine="transformers", kv_cache="fp8").title == "quality none · fp8 cache"
    assert run_spec("prepare").title == "prepare M"
    assert run_spec("task", repetition=1).title == "task arc_easy none"
    assert run_spec("performance", repetition=1).title == "performance none #2"


def test_among_runs_of_several_models_a_title_names_the_model_once() -> None:
    other = changed(SPEC, model=replace(MODEL, label="another model"))
    prepares = changed(run_spec("prepare"), model=other.model)
    title = titles_among([SPEC, other, prepares, run_spec("machine")])
    assert title(SPEC) == "quality none · llamacpp · M"
    assert title(other) == "quality none · llamacpp · another model"
    assert title(prepares) == "prepare another model"
    assert title(run_spec("machine")) == run_spec("machine").title
    assert titles_among([SPEC, run_spec("machine")])(SPEC) == SPEC.title


def test_a_run_of_no_variant_says_so() -> None:
    with pytest.raises(TypeError, match="a prepare run is of no variant"):
        _ = run_spec("prepare").variant
    with pytest.raises(TypeError, match="a machine run is of no model"):
        _ = run_spec("machine").model
    assert run_spec("machine").names()["model"] is None
    assert not run_spec("prepare").is_baseline
