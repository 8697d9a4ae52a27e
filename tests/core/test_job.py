"""Jobs and the specs around them: what is written is read, and what a run is named by is what its job declares."""

from __future__ import annotations

import json
import lzma
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_specs import NONE, changed, run_spec

import harness.execution.jobs
from harness import plugins
from harness.core.capability import Capability
from harness.core.job import JOBS, Conditions, Environment, VariantJob
from harness.core.model import MethodRef, ModelRef
from harness.core.record import RunRecord
from harness.core.run import HourlyPrice, ReaderSettings, RunLimits, RunSpec
from harness.core.upgrade import upgrade
from harness.core.variant import Variant
from harness.core.workload import (
    CalibrationRef,
    MetricRef,
    PerplexityWorkload,
    ServingWorkload,
    Slo,
    TaskWorkload,
    TextRef,
    ThroughputWorkload,
)
from harness.planning.versions import PARTS
from harness.storage.json_codec import decode, encode

SPECS = Path(__file__).parents[1] / "data" / "golden" / "specs.json.xz"
WORD = st.text("abz-é", min_size=1, max_size=3)
COUNT = st.integers(1, 2**40)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(-5, 2**40), st.floats(-1e9, 1e9).map(float), WORD)
TEXT = st.builds(TextRef, WORD, st.none() | WORD, sha256=st.none() | WORD)
DEVICE = st.sampled_from(["cpu", "cuda"])
MODEL = st.builds(
    ModelRef,
    WORD,
    WORD,
    WORD,
    st.sampled_from(["hub", "directory", "gguf", "synthetic"]),
    WORD,
    degrid=st.none() | COUNT,
    config=st.dictionaries(WORD, SCALAR | st.lists(COUNT, max_size=2), max_size=2),
)
METHOD = st.builds(
    MethodRef,
    WORD,
    COUNT,
    st.dictionaries(WORD, SCALAR, max_size=2),
    WORD,
    st.sampled_from(["none", "on_load", "offline", "published"]),
    st.none() | MODEL,
    st.none() | WORD,
)
CALIBRATION = st.builds(
    CalibrationRef,
    TEXT,
    st.sampled_from(["concat", "crop", "pad"]),
    st.sampled_from(["auto", "always", "never"]),
    st.booleans(),
    COUNT,
    COUNT,
    COUNT,
)
PERPLEXITY = st.builds(PerplexityWorkload, TEXT, WORD, COUNT, st.none() | COUNT, st.none() | COUNT)
METRICS = st.lists(st.builds(MetricRef, WORD, st.dictionaries(WORD, SCALAR, max_size=2)), max_size=2).map(tuple)
COUNTS = st.lists(COUNT, min_size=1, max_size=2).map(tuple)
OF_A_JOB: dict[str, st.SearchStrategy[Any]] = {
    "conditions": st.builds(Conditions, DEVICE, st.none() | COUNT, st.none() | WORD, st.booleans()),
    "model": MODEL,
    "variant": st.builds(
        Variant,
        MODEL,
        METHOD,
        WORD,
        WORD,
        st.lists(WORD, max_size=2).map(tuple),
        st.dictionaries(WORD, st.dictionaries(WORD, SCALAR, max_size=2), max_size=2),
        st.none() | CALIBRATION,
        st.sampled_from(["model", "int8", "int4", "fp8"]),
        COUNT,
    ),
    "baseline": METHOD,
    "calibration": CALIBRATION,
    "evaluations": st.lists(PERPLEXITY, max_size=2).map(tuple),
    "perplexity": PERPLEXITY,
    "observers": METRICS,
    "workloads": METRICS,
    "task": st.builds(TaskWorkload, WORD, WORD, data=st.none() | TEXT, fewshot=st.none() | COUNT),
    "throughput": st.builds(
        ThroughputWorkload, COUNTS, COUNTS, COUNT, COUNT, COUNT, st.sampled_from(["eager", "compiled"])
    ),
    "serving": st.builds(
        ServingWorkload,
        st.sampled_from(["concurrent", "poisson", "constant"]),
        st.lists(st.floats(1, 9), min_size=1, max_size=2).map(tuple),
        TEXT,
        st.none() | COUNT,
        COUNT,
        st.booleans(),
        st.none() | COUNT,
        st.none() | st.floats(1, 9),
        COUNT,
        st.none() | st.builds(Slo, st.none() | st.floats(0.1, 9), itl_s=st.none() | st.floats(0.1, 9)),
        COUNT,
    ),
}
"""By the name of a field what it may hold; a field that is not here is a switch."""


@st.composite
def specs(draw: st.DrawFn, kind: str) -> RunSpec:
    own = [each.name for each in fields(JOBS[kind]) if each.name != "kind"]
    job: Any = JOBS[kind](**{name: draw(OF_A_JOB.get(name, st.booleans())) for name in own})  # type: ignore[arg-type]
    versions = st.dictionaries(WORD, COUNT, max_size=2)
    return RunSpec(
        draw(WORD),
        job,
        draw(st.builds(Environment, WORD, WORD, WORD, versions, COUNT, COUNT)),
        draw(st.dictionaries(WORD, WORD, max_size=2)),
        RunLimits(draw(st.none() | st.floats(1, 9)), draw(st.none() | COUNT)),
        ReaderSettings(draw(st.none() | COUNT), draw(st.none() | st.builds(HourlyPrice, st.floats(0, 9), WORD))),
    )


@pytest.mark.parametrize("kind", JOBS)
@settings(max_examples=25)
@given(st.data())
def test_what_is_written_is_read(kind: str, data: st.DataObject) -> None:
    spec = data.draw(specs(kind))
    again = decode(RunSpec, json.loads(encode(spec)), "spec.json")
    assert again == spec
    assert (again.case_id, again.run_id) == (spec.case_id, spec.run_id)


def test_what_schema_1_wrote_is_written_in_the_new_layout() -> None:
    for each in json.loads(lzma.decompress(SPECS.read_bytes())):
        spec = decode(RunRecord, upgrade(each["record"], "kept"), "kept").spec
        again = decode(RunSpec, json.loads(encode(spec)), "spec.json")
        assert again == spec
        assert (again.case_id, again.run_id) == (each["case_id"], each["run_id"])


@pytest.mark.parametrize("kind", JOBS)
def test_every_kind_has_one_file_that_does_its_job(kind: str) -> None:
    folder = Path(str(harness.execution.jobs.__file__)).parent
    assert {path.stem for path in folder.glob("[!_]*.py")} == set(JOBS)
    assert callable(import_module(f"harness.execution.jobs.{kind}").run)


@pytest.mark.parametrize("kind", JOBS)
def test_what_a_job_names_is_there(kind: str) -> None:
    job = run_spec(kind, **({"calibration": _calibration()} if kind == "calibrate" else {})).job
    assert set(job.needs) <= set(JOBS)
    assert set(job.parts) <= set(PARTS)
    assert set(job.metrics) <= set(plugins.metric_names())
    assert set(job.uses) <= set(get_args(Capability))
    assert set(job.reader_settings) <= {each.name for each in fields(ReaderSettings)}


def test_every_part_of_the_harness_with_a_version_is_named_by_a_job() -> None:
    named = {part for job in JOBS.values() for part in job.parts}
    assert set(PARTS) - {"kv_cache"} == named  # which belongs to a variant, whatever is done to it


def test_ranks_tell_the_runs_of_one_row_apart() -> None:
    ranks = [job.row_rank for job in JOBS.values() if job.row_rank is not None]
    assert len(set(ranks)) == len(ranks)
    assert all(issubclass(job, VariantJob) for job in JOBS.values() if job.row_rank is not None)


@pytest.mark.parametrize("kind", ["quantize", "quality", "task", "performance"])
def test_neither_names_nor_places_nor_limits_are_part_of_a_question(kind: str) -> None:
    spec = run_spec(kind)
    elsewhere = changed(
        spec,
        recipe="other",
        lock="l",
        hardware="h",
        versions={"v": 1},
        method_version=7,
        repetition=1,
        needs={"prepare": "p"},
        limits=RunLimits(1.0, 2),
        budget_bytes=1,
        gates={"kl": 0.1},
        method=MethodRef(NONE.name, NONE.version, NONE.params, "another label", NONE.stage),
    )
    assert elsewhere.case_id == spec.case_id
    assert elsewhere.run_id != spec.run_id


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"lock": "l"}, False),
        ({"hardware": "h"}, False),
        ({"versions": {"v": 1}}, False),
        ({"method_version": 2}, False),
        ({"repetition": 1}, False),
        ({"needs": {"quantize": "q"}}, False),
        ({"stack": "another"}, True),
        ({"recipe": "another"}, True),
        ({"limits": RunLimits(1.0)}, True),
        ({"gates": {"kl": 0.1}}, True),
        ({"verify": False}, True),
    ],
)
def test_a_run_is_named_by_what_can_change_its_figures(change: dict[str, Any], same: bool) -> None:
    spec = run_spec("performance")
    assert (changed(spec, **change).run_id == spec.run_id) is same


def test_a_machine_is_measured_once_for_all_models() -> None:
    assert run_spec("machine").run_id == run_spec("machine", recipe="other", memory=False).run_id
    assert run_spec("machine", threads=2).case_id != run_spec("machine").case_id


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ({"kind": "quality"}, r"r: job.quality.conditions: field required"),
        ({"kind": "quailty"}, r"r: job: input tag 'quailty' found using 'kind' does not match"),
        ({}, r"r: job: unable to extract tag using discriminator 'kind'"),
    ],
)
def test_a_fault_is_named_by_its_kind_of_run_alone(raw: dict[str, Any], fault: str) -> None:
    from harness.errors import ResultsError

    with pytest.raises(ResultsError, match=fault):
        decode(RunSpec, {"recipe": "r", "job": raw}, "r")


def _calibration() -> CalibrationRef:
    return CalibrationRef(TextRef("t"), "concat", "auto", False, 1, 1, 1)
