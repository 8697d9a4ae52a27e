"""One set of records gives one number, wherever it is printed.

Each figure is worked out here from the raw values by the standard library alone, then looked up in everything that
prints it: the report's CSV and Markdown, comparison and history as JSON, the recommendation as JSON, the model card,
and MLflow.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from answer_records import with_written_answers
from huggingface_hub import ModelCard
from mixture_records import OVERLAPS, ROUTER_KLS, of_a_mixture
from run_specs import UNDER_LOAD
from served_records import served

from harness.analysis.history.trace import trace
from harness.analysis.regression.track import track
from harness.api.recommend import recommend
from harness.core.record import Measurement, RunRecord
from harness.figures.formats import significant
from harness.figures.statistic import Items
from harness.plugins import gates
from harness.report import write_report
from harness.report.column import shown_columns
from harness.report.comparison import render as comparison_text
from harness.report.flat import entries
from harness.report.history import render as history_text
from harness.report.page import page
from harness.report.recommendation import json_line
from harness.report.renderers.markdown import heading
from harness.tasks.aspects import ASPECTS

SPEEDS = (1.0, 1.05, 2.0, 1.01)
"""Of four processes, as multiples: a mean of any kind is far from their median."""
SPIKES = (1.0, 1.01, 4.0)
"""Of the steps of a process in turn: so is a mean of these from theirs."""
PLACE = "b1_p128_n32"


@dataclass(frozen=True)
class Sweep:
    records: list[RunRecord]
    variant: str
    """The label of the variant that is looked up."""

    def values(self, metric: str, kind: str = "performance", **protocol: object) -> list[tuple[float, ...]]:
        """Of each run of the variant, what it measured of this metric."""
        return [
            m.values
            for run in self.records
            if run.spec.kind == kind and run.spec.method.label == self.variant
            for m in run.outcome.measurements
            if m.metric == metric and protocol.items() <= dict(m.protocol).items()
        ]


def uneven(run: RunRecord, repetition: int) -> RunRecord:
    """Energies and peaks that differ from process to process, and steps that do within one."""

    def change(m: Measurement) -> Measurement:
        if m.metric in ("prefill_s", "decode_step_s"):
            return replace(m, values=tuple(v * SPIKES[i % len(SPIKES)] for i, v in enumerate(m.values)))
        if m.metric == "peak_memory_bytes":
            return replace(m, values=tuple(v + 10**6 * SPEEDS[repetition] for v in m.values))
        return m

    return replace(run, outcome=replace(run.outcome, measurements=tuple(map(change, run.outcome.measurements))))


def times(level: float, number: int, repetition: int) -> tuple[float, float]:
    """Of a request: to its first token and between tokens (s). Of the slowest process 36 of 40 meet the SLO."""
    return (0.1 + 0.0042 * number) * SPEEDS[repetition], (0.01 + 0.001 * number) * SPEEDS[repetition]


def under_load() -> Mapping[str, float]:
    """The figures of a server, whose requests are sent a second apart and have five tokens each."""
    found: dict[str, list[float]] = defaultdict(list)
    for repetition in range(len(SPEEDS)):
        each = [times(8.0, number, repetition) for number in range(40)]
        last_s = max(number + ttft + 4 * gap for number, (ttft, gap) in enumerate(each))
        found["ttft_p95"].append(_p95([ttft for ttft, _ in each]))
        found["tpot_p95"].append(_p95([gap for _, gap in each]))
        found["itl_p95"].append(_p95([gap for _, gap in each for _ in range(4)]))
        found["e2e_p95"].append(_p95([ttft + 4 * gap for ttft, gap in each]))
        found["output_throughput"].append(40 * 5 / last_s)
        met = sum(ttft <= 0.5 for ttft, _ in each)
        found["goodput"].append(met / last_s)
        found["answered"].append(1.0)
        found["largest_load"].append(8.0 if met >= 36 else 0.0)
    return {name: statistics.median(values) for name, values in found.items()}


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


@pytest.fixture
def sweep(bench: Any, none: Any, looks: Sequence[Any], answered: list[RunRecord]) -> Sweep:
    look = looks[0]
    qualities = (bench.quality(none), bench.quality(look.method, look.bits, look.damage))
    records = [*map(of_a_mixture, qualities), *map(with_written_answers, answered[:2])]
    for repetition, factor in enumerate(SPEEDS):
        for method, speed, bits in ((none, 1.0, 32), (look.method, look.speed, look.bits)):
            made = bench.performance(method, speed * factor, repetition, (128, 512), bits)
            records.append(uneven(made, repetition))
            records.append(bench.record(bench.spec("serve", method, repetition), served(repetition, times, UNDER_LOAD)))
    return Sweep(records, look.label)


def expected(sweep: Sweep) -> Mapping[str, float]:
    """By the gate that a figure belongs to, worked out by hand."""
    at = {"prompt_tokens": 128}
    (nll,), (kl,), (agree,) = (sweep.values(name, "quality") for name in ("nll", "kl", "top1_agreement"))
    (answers,) = sweep.values("task_score", "task")
    energies = {
        phase: statistics.median(
            statistics.median(each) for each in sweep.values(f"{phase}_j_per_tok", idle="subtracted", **at)
        )
        for phase in ("prefill", "decode")
    }
    written = {name: statistics.fmean(sweep.values(name, "task")[0]) for name in WRITTEN}
    majority = statistics.fmean(sweep.values("task_majority", "task")[0])
    return {
        **{**written, "majority": majority},
        **under_load(),
        "perplexity": math.exp(statistics.fmean(nll)),  # windows of one length
        "kl": statistics.fmean(kl),
        "agreement": statistics.fmean(agree),
        "accuracy": statistics.fmean(answers),
        "prefill": statistics.median(128 / statistics.median(each) for each in sweep.values("prefill_s", **at)),
        "decode": statistics.median(1 / statistics.median(each) for each in sweep.values("decode_step_s", **at)),
        "peak_memory": max(value for each in sweep.values("peak_memory_bytes") for value in each),
        "prefill_energy": energies["prefill"],
        "decode_energy": energies["decode"],
        "stored_bytes": sum(value for each in sweep.values("stored_bytes", "quality") for value in each),
        "bits_per_weight": 8
        * sum(value for each in sweep.values("stored_bytes", "quality", role="linear") for value in each)
        / sum(value for each in sweep.values("parameters", "quality", role="linear") for value in each),
        "checkpoint_bytes": sweep.values("checkpoint_file_bytes", "quality")[0][0],
        "kv_cache": 2 * 30 * 3 * 64 * 4,
        "coverage": 1.0,
        "router_overlap": sum(share * (1 + at // 2) for at, share in enumerate(OVERLAPS)) / 12,
        "router_kl": sum(nat * (1 + at // 2) for at, nat in enumerate(ROUTER_KLS)) / 12,
        "dead_experts": 2,
        "starved_experts": 3,
    }


WRITTEN = [each.name for each in ASPECTS if each.direction != "neither"]
LOADED = "32_tokens_of_demo_5_tokens"
CSV = {
    **{f"{name}_p95": f"{name}_p95_s_concurrent_8_{LOADED}" for name in ("ttft", "tpot", "itl", "e2e")},
    **{name: f"{name}_concurrent_8_{LOADED}" for name in ("output_throughput", "goodput", "answered")},
    "largest_load": f"largest_load_concurrent_{LOADED}",
    **{name: f"arc_easy_0-shot_{name}" for name in (*WRITTEN, "majority")},
    "perplexity": "perplexity",
    "kl": "kl_mean_nat",
    "agreement": "top1_agreement_fraction",
    "accuracy": "arc_easy_0-shot_acc",
    "prefill": f"prefill_tok_per_s_{PLACE}",
    "decode": f"decode_tok_per_s_{PLACE}",
    "peak_memory": "peak_memory_bytes",
    "prefill_energy": f"prefill_j_per_tok_rapl_{PLACE}",
    "decode_energy": f"decode_j_per_tok_rapl_{PLACE}",
    "stored_bytes": "stored_bytes",
    "bits_per_weight": "linear_bits_per_weight",
    "checkpoint_bytes": "checkpoint_file_bytes",
    "kv_cache": "kv_cache_bytes_per_token",
    "coverage": "coverage_fraction",
    "router_overlap": "router_overlap_fraction",
    "router_kl": "router_kl_nat",
    "dead_experts": "dead_experts",
    "starved_experts": "starved_experts",
}
"""From a gate to the report's column of the same figure."""
LIMITS = {
    "prefill": ("min_prefill", 1),
    "decode": ("min_decode", 1),
    "kl": ("max_kl", 10),
    "agreement": ("min_agreement", "1%"),
    "decode_energy": ("max_energy", 1e6),
    "stored_bytes": ("max_size", "100GB"),
}
"""From a gate to the limit by which a recommendation tells the same figure."""
CARD = {"perplexity": "perplexity", "kl": "kl_divergence", "agreement": "top1_agreement", "accuracy": "acc"}


def test_every_gate_has_its_figure_here() -> None:
    assert CSV.keys() == gates().keys()


def test_the_figures_are_far_from_those_of_other_statistics(sweep: Sweep) -> None:
    """Else this would hold for any statistic."""
    steps = [statistics.median(each) for each in sweep.values("decode_step_s", prompt_tokens=128)]
    assert expected(sweep)["decode"] < 0.9 / statistics.geometric_mean(steps)
    every = [value for each in sweep.values("decode_step_s", prompt_tokens=128) for value in each]
    assert statistics.fmean(every) > 1.3 * statistics.median(every)


def test_the_report_as_csv_and_what_mlflow_gets(sweep: Sweep, tmp_path: Path) -> None:
    (path,) = write_report(sweep.records, tmp_path, ("csv",))
    (line,) = [
        each
        for each in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        if each["variant"] == sweep.variant
    ]
    (logged,) = [each for each in entries(page(sweep.records).tables) if each["variant"] == sweep.variant]
    for gate, figure in expected(sweep).items():
        assert float(line[CSV[gate]]) == pytest.approx(figure, rel=1e-12), gate
        assert logged[CSV[gate]] == float(line[CSV[gate]]), gate


def test_the_report_and_the_card_as_markdown(sweep: Sweep, tmp_path: Path) -> None:
    report, card, *_ = write_report(sweep.records, tmp_path, ("md", "model-card"))
    (table,) = page(sweep.records).tables
    shown = {column.name: column for column in shown_columns(table)}
    lines = [line.strip("| ").split(" | ") for line in report.read_text(encoding="utf-8").splitlines()]
    (head,) = [line for line in lines if line[0] == "Variant"]
    (row,) = [line for line in lines if line[0].startswith(f"**{sweep.variant}**")]
    told = {line.strip("| ").split(" | ")[0]: line.strip("| ").split(" | ")[1] for line in _rows(card)}
    printed = {gate: CSV[gate] for gate in CSV if CSV[gate] in shown}
    assert printed.keys() >= {"perplexity", "kl", "accuracy", "prefill", "decode", "decode_energy", "stored_bytes"}
    for gate, name in printed.items():
        column, figure = shown[name], expected(sweep)[gate]
        digits = 4 if gate == "perplexity" else 3
        counted = gate in ("dead_experts", "starved_experts")
        text = str(figure) if counted else significant(figure * column.format.factor, digits)
        assert row[head.index(heading(column))].split()[0] == text, gate
        assert told[heading(column)].split()[0] == text, gate


def _rows(card: Path) -> list[str]:
    return [line for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]


def test_the_card_s_metadata(sweep: Sweep, tmp_path: Path) -> None:
    path, *_ = write_report(sweep.records, tmp_path, ("model-card",))
    found = {each.metric_type: each.metric_value for each in ModelCard.load(path).data.eval_results}
    for gate, name in CARD.items():
        assert found[name] == pytest.approx(expected(sweep)[gate], rel=1e-12), gate


def test_a_comparison_s_two_sides(sweep: Sweep) -> None:
    again = [replace(run, session="s2", started_at=run.started_at.replace("-11-", "-12-")) for run in sweep.records]
    told = json.loads(comparison_text(track(sweep.records, again), "json"))
    found = [each for each in told["findings"] if each["method"] == sweep.variant]
    _agree(sweep, [(each["metric"], each["where"], each[side]) for each in found for side in ("base", "head")])
    changes = {each["metric"]: each["change"]["value"] for each in found if each["change"]}
    assert changes == {
        name: 0 for name, each in gates().items() if not isinstance(each.statistic, Items)
    }  # the same items: no change


def test_a_history_s_points(sweep: Sweep) -> None:
    told = json.loads(history_text(trace(sweep.records), "json"))
    found = [each for each in told["series"] if each["method"] == sweep.variant]
    _agree(sweep, [(each["metric"], each["where"], point["value"]) for each in found for point in each["points"]])


def _agree(sweep: Sweep, found: Sequence[tuple[str, str, float]]) -> None:
    figures = expected(sweep)
    other = "prompt 512"  # the other point of the grid
    here = [(gate, value) for gate, where, value in found if other not in where]
    assert {gate for gate, _ in here} - {"runs"} == gates().keys()
    for gate, value in here:
        assert value == pytest.approx(figures[gate], rel=1e-9), gate  # JSON has ten digits


def test_a_recommendation_s_figures(sweep: Sweep) -> None:
    limits: dict[str, Any] = dict(LIMITS.values())
    (found,) = recommend(sweep.records, max_perplexity_increase="900%", max_accuracy_drop="90%", **limits)
    told = json.loads(json_line(found))
    figures = expected(sweep)
    (ours,) = [each for each in told["admissible"] if each["variant"] == sweep.variant]
    for gate, (option, _) in LIMITS.items():
        assert ours["limits"][option.replace("_", "-")]["value"] == pytest.approx(figures[gate], rel=1e-12), gate
    assert ours["objective"]["value"] == figures["stored_bytes"]
    base = statistics.fmean(_of(sweep, "nll", "quality"))
    rise = figures["perplexity"] / math.exp(base) - 1
    assert ours["limits"]["max-perplexity-increase"]["value"] == pytest.approx(rise, rel=1e-9)
    lost = statistics.fmean(_of(sweep, "task_score", "task")) - figures["accuracy"]
    assert ours["limits"]["max-accuracy-drop"]["value"] == pytest.approx(lost, rel=1e-9)


def _of(sweep: Sweep, metric: str, kind: str) -> tuple[float, ...]:
    """The baseline's values."""
    (run,) = [run for run in sweep.records if run.spec.is_baseline and run.spec.kind == kind]
    (values,) = [m.values for m in run.outcome.measurements if m.metric == metric]
    return values


def test_mlflow_s_store(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs MLflow: pip install 'qharness[mlflow]'")
    from mlflow import MlflowClient

    from harness.report.renderers.mlflow_export import export

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    export(sweep.records, uri, "qharness")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("qharness")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [each for each in runs if each.data.tags.get("variant") == sweep.variant]
    for gate, figure in expected(sweep).items():
        assert run.data.metrics[CSV[gate]] == pytest.approx(figure, rel=1e-12), gate
