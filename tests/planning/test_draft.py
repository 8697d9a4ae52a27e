"""Drafted recipes: what fits is taken, what does not is said, and the file plans the same runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.api.plan import plan as plan_here
from harness.core.site import Machine, Speeds
from harness.errors import UsageError
from harness.execution.local import LocalSite, local_site
from harness.models.sources import inspect
from harness.planning.draft.draft import RecipeDraft
from harness.planning.draft.propose import LEAST, Proposal, SweepRoom, propose
from harness.planning.draft.sizing import ENOUGH, choose
from harness.planning.estimate.gpus import budget, size_bytes
from harness.planning.forecast.forecast import SweepForecast, forecast
from harness.planning.plan import PlannedRun
from harness.recipe import Model, load_recipe

SPEEDS = Speeds(0.2, 10e9, {"float32": 50e9}, 1e9)
MACHINE = Machine("cpu", "a test machine")
Propose = Callable[..., Proposal]


def expected(runs: Sequence[PlannedRun], planned: Sequence[PlannedRun]) -> SweepForecast:
    return forecast(runs, planned, SPEEDS, [])


@pytest.fixture
def drafted(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Propose:
    """Proposes a recipe for the tiny Llama on a CPU."""
    monkeypatch.setattr(LocalSite, "machine", lambda site, device: MACHINE)

    def drafted(
        *methods: str, minutes: float = 600.0, disk_bytes: int = 10**12, memory: str | None = None, tried: Path = tiny
    ) -> Proposal:
        source = inspect(Model(id=str(tried)), tmp_path)
        draft = RecipeDraft("try-tiny", {"id": str(tried)}, source, "transformers", LEAST, "demo", "30m", memory)
        limit = None if memory is None else budget(memory)
        room = SweepRoom(minutes * 60, disk_bytes, limit)
        return propose(draft, "size", methods, room, tmp_path / "r.yaml", local_site(tmp_path), expected)

    return drafted


def kept(proposal: Proposal) -> list[str]:
    return [each.label for each in proposal.draft.methods]


def left_out(proposal: Proposal) -> Mapping[str, str]:
    return {each.label: each.reason for each in proposal.left_out}


def least_minutes(drafted: Propose, *methods: str) -> float:
    """What the refusal of much too little time says is enough."""
    with pytest.raises(UsageError, match="the smallest comparison") as refused:
        drafted(*methods, minutes=0.01)
    minutes = re.search(r"give --minutes ([\d.]+)$", str(refused.value))
    assert minutes is not None
    return float(minutes[1])


@given(
    st.lists(st.lists(st.integers(0, 100), min_size=4, max_size=4), min_size=1, max_size=6),
    st.integers(0, 200),
    st.integers(0, 3),
)
def test_what_is_chosen_fits_whatever_it_costs(costs: list[list[int]], limit: int, standard: int) -> None:
    """``costs`` are those of each candidate at each effort; a greater effort may even cost less."""
    candidates, efforts = range(len(costs)), range(4)

    def obstacle(chosen: Sequence[int], effort: int) -> str | None:
        return "too dear" if sum(costs[each][effort] for each in chosen) > limit else None

    sized = choose(candidates, efforts, obstacle, standard)
    assert sorted([*sized.kept, *(each for each, _ in sized.left_out)]) == list(candidates)
    assert list(sized.kept) == sorted(sized.kept)
    if sized.kept:
        assert obstacle(sized.kept, sized.effort) is None
        assert sized.effort == efforts[-1] or obstacle(sized.kept, sized.effort + 1) is not None
    else:
        assert all(costs[each][0] > limit for each in candidates)


def test_fewer_methods_are_compared_only_where_less_text_does_not_help() -> None:
    cost = {0: 1, 1: 10, 2: 20}

    def within(limit: int) -> Callable[[Sequence[str], int], str | None]:
        return lambda chosen, effort: "too dear" if len(chosen) * cost[effort] > limit else None

    methods = "abcdef"
    assert choose(methods, (0, 1, 2), within(10 * ENOUGH), standard=1).effort == 1
    less = choose(methods, (0, 1, 2), within(10 * ENOUGH - 1), standard=1)
    assert (less.effort, len(less.kept)) == (0, 6)
    assert choose(methods, (0, 1, 2), within(20 * 6), standard=1).effort == 2


@pytest.mark.parametrize("minutes", [2.0, 10.0, 1000.0])
def test_the_forecast_of_the_recipe_never_exceeds_the_minutes(drafted: Propose, minutes: float, tmp_path: Path) -> None:
    made = drafted("int8", "rtn bits=4", "gptq", "fp8", minutes=minutes)
    assert made.forecast.total_s.expected <= minutes * 60
    path = tmp_path / "r.yaml"
    path.write_text(made.draft.text_with(["qharness try"]))
    runs = plan_here(load_recipe(path), MACHINE)
    assert set(made.forecast.runs) == {run.spec.run_id for run in runs}
    assert expected(runs, runs).total_s == made.forecast.total_s


def test_more_time_is_used_for_more_text_and_more_processes(drafted: Propose) -> None:
    short, long = (
        drafted("int8", minutes=minutes).draft.effort for minutes in (least_minutes(drafted, "int8"), 1000.0)
    )
    assert short.windows is not None
    assert long.windows is None
    assert short.repetitions < long.repetitions


def test_too_little_time_is_refused_with_the_time_that_is_enough(drafted: Propose) -> None:
    enough = least_minutes(drafted, "int8", "gptq")
    assert kept(drafted("int8", "gptq", minutes=enough)) == ["int8"]
    with pytest.raises(UsageError, match=f"give --minutes {enough:g}$"):
        drafted("int8", "gptq", minutes=enough - 0.1)


def test_what_this_machine_cannot_run_is_left_out_with_the_reason(drafted: Propose) -> None:
    made = drafted("int8", "torchao-fp8-dynamic", "gguf")
    assert kept(made) == ["int8"]
    assert "needs an NVIDIA GPU" in left_out(made)["torchao-fp8-dynamic"]
    assert left_out(made)["gguf"] == "transformers does not read what it makes"


def test_a_disk_that_is_nearly_full_is_said(drafted: Propose) -> None:
    with pytest.raises(UsageError, match=r"no method fits: gptq group_size=64: .*the disk has 0.0 GB free"):
        drafted("gptq", disk_bytes=1000)


def test_what_exceeds_the_budget_is_left_out_and_the_baseline_stays(drafted: Propose, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(drafted("rtn bits=8", "rtn bits=2").draft.text_with(["qharness try"]))
    runs = plan_here(load_recipe(path), MACHINE)
    sizes = {run.spec.method.label: run.weight_bytes or 0 for run in runs if run.spec.kind == "quality"}
    between = f"{(sizes['rtn bits=2'] + sizes['rtn bits=8']) // 2000}KB"
    made = drafted("rtn bits=8", "rtn bits=2", memory=between)
    assert kept(made) == ["rtn bits=2"]
    assert f"more than --budget {between}" in left_out(made)["rtn bits=8"]
    assert made.draft.data["methods"][0] == "none"
    assert made.draft.data["measure"]["memory"] == {"budget": between}


def test_a_group_size_that_divides_no_width_is_replaced_unless_the_user_gave_it(drafted: Propose) -> None:
    made = drafted("gptq", "rtn bits=4", "awq group_size=128")
    assert kept(made) == ["gptq group_size=64", "rtn bits=4"]
    assert "group_size 128 does not divide" in left_out(made)["awq group_size=128"]


@pytest.mark.parametrize("named", [("none",), ("no-such-method",), ("rtn colour=4",), ("checkpoint",)])
def test_a_method_that_cannot_be_compared_is_refused(drafted: Propose, named: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="method"):
        drafted(*named)


def test_methods_are_named_once(drafted: Propose) -> None:
    assert kept(drafted("rtn bits=4", "ptq bits=4", "rtn")) == ["rtn bits=4"]


def test_room_on_a_disk_is_a_size_and_no_gpu() -> None:
    assert size_bytes(" 40GB", "--disk") == budget("40GB").bytes == 40 * 10**9
    for wrong in ("H200", "lots", "0GB", ""):
        with pytest.raises(UsageError, match="--disk: expected a size above zero"):
            size_bytes(wrong, "--disk")
