"""Records in, tables out: what counts, what is set beside what, and what never is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from run_specs import changed

from harness.analysis.tradeoff import tradeoff
from harness.core.label import Label
from harness.core.model import MethodRef
from harness.core.record import Forecast, RunRecord
from harness.figures.figure import WHOLE
from harness.figures.table import Outliers, Table, VariantRow
from harness.plugins import figures

Bench = Any  # the class in conftest.py, which cannot be imported


def only(records: list[RunRecord]) -> Table:
    (table,) = tradeoff(records)
    return table


def row(table: Table, label: str) -> VariantRow:
    (found,) = [each for each in table.rows if each.label == label]
    return found


def test_no_records_no_tables() -> None:
    assert tradeoff([]) == ()


def test_a_sweep_makes_one_table_baseline_first_then_by_size(bench: Bench) -> None:
    table = only(bench.sweep())
    sizes = [entry.stored_bytes or 0 for entry in table.rows[1:]]
    assert table.rows[0].is_baseline
    assert sizes == sorted(sizes, reverse=True)
    assert len(table.rows) == 14
    assert table.native_quantization == "Q4_1"
    assert table.labels == (Label("natively_quantized", {"quantization": "Q4_1", "degridded": True}),)
    assert table.recipes == ("smollm2-cpu",)
    assert "context 512" in table.protocol
    assert "2 threads" in table.hardware


def test_sizes_and_bits(bench: Bench, none: MethodRef) -> None:
    """float32 is twice the 16-bit equivalent, 32 bits a weight."""
    base = row(only([bench.quality(none)]), "unquantized")
    assert base.bits_per_weight == 32
    assert base.size_ratio == 2
    assert base.linear_ratio == 2
    assert base.stored_bytes == (106_168_320 + 28_311_552 + 35_136) * 4


def test_bits_count_scales_and_linears_alone(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    entry = row(only([bench.quality(none), bench.quality(rtn, 4.5, 0.1)]), "rtn 4-bit")
    assert entry.bits_per_weight == pytest.approx(4.5)
    assert entry.linear_ratio == pytest.approx(4.5 / 16)
    assert entry.stored_part("linear", "scales") == 106_168_320 * 0.5 / 8


def test_change_is_paired_with_the_baseline(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    table = only([bench.quality(none), bench.quality(rtn, 4.5, 0.02)])
    entry = row(table, "rtn 4-bit")
    assert entry.perplexity_change is not None
    assert entry.perplexity is not None
    paired_width = entry.perplexity_change.high - entry.perplexity_change.low  # type: ignore[operator]
    unpaired_width = (entry.perplexity.high - entry.perplexity.low) / entry.perplexity.value  # type: ignore[operator]
    assert paired_width < unpaired_width / 20
    assert row(table, "unquantized").perplexity_change is None


def test_change_needs_a_baseline_with_the_same_libraries(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    newer = replace(bench, torch="2.14.0")
    table = only([bench.quality(none), newer.quality(rtn, 4.5, 0.02)])
    assert row(table, "rtn 4-bit").perplexity_change is None
    assert table.notes == ("perplexity stands alone, no baseline was measured with the same libraries: rtn 4-bit",)


def test_change_prefers_the_like_baseline_to_the_newest(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    newer = replace(bench, torch="2.14.0", day=2)
    table = only([bench.quality(none), bench.quality(rtn, 4.5, 0.02), newer.quality(none, damage=1.0)])
    change = row(table, "rtn 4-bit").perplexity_change
    assert change is not None
    assert 0 < change.value < 0.05


def test_no_common_window_leaves_a_blank_and_a_note(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    variant = bench.quality(rtn, 4.5, 0.02)
    nll, *rest = variant.outcome.measurements
    moved = replace(nll, item_ids=tuple(f"x{item}" for item in nll.item_ids))
    variant = replace(variant, outcome=replace(variant.outcome, measurements=(moved, *rest)))
    table = only([bench.quality(none), variant])
    assert row(table, "rtn 4-bit").perplexity_change is None
    assert any("no item is common" in note for note in table.notes)


def test_two_protocols_never_share_a_table(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    longer = replace(bench, context=1024)
    other = replace(bench, text="other")
    records = [each.quality(method) for each in (bench, longer, other) for method in (none, rtn)]
    tables = tradeoff(records)
    assert len(tables) == 3
    assert len({table.protocol for table in tables}) == 3
    assert all(len(table.rows) == 2 for table in tables)


def test_what_was_really_scored_counts_not_what_was_planned(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    """Same workload, but the windows were cut otherwise."""
    variant = bench.quality(rtn)
    nll, *rest = variant.outcome.measurements
    cut = replace(nll, protocol={**nll.protocol, "bos": "each window"})
    variant = replace(variant, outcome=replace(variant.outcome, measurements=(cut, *rest)))
    assert len(tradeoff([bench.quality(none), variant])) == 2


def test_two_machines_never_share_a_table(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    other = replace(bench, hardware="H100")
    assert len(tradeoff([bench.quality(none), other.quality(rtn)])) == 2


def test_two_models_of_one_name_never_share_a_table(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    other = replace(bench, model=replace(bench.model, content="e" * 64))
    assert len(tradeoff([bench.quality(none), other.quality(rtn)])) == 2


def test_speeds_and_ratio(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    runs = [bench.performance(method, speed, n) for n in range(3) for method, speed in ((none, 1.0), (rtn, 2.0))]
    entry = row(only(runs), "rtn 4-bit")
    speed = entry.speeds[0]
    assert speed.decode_ratio is not None
    assert speed.decode_tok_per_s is not None
    assert speed.decode_tok_per_s.n == 3
    assert speed.decode_tok_per_s.value == pytest.approx(40, rel=0.05)
    assert speed.prefill_tok_per_s.value == pytest.approx(800, rel=0.05)  # type: ignore[union-attr]
    assert speed.decode_ratio.value == pytest.approx(2, rel=0.01)
    assert speed.decode_ratio.method == "95% t-interval over processes, never narrower than the bootstrap's"
    assert (speed.decode_outliers, speed.prefill_outliers) == (Outliers(0, 90), Outliers(0, 9))


def test_a_decode_mode_is_a_row_beside_the_baseline_in_the_same_mode(
    bench: Bench, none: MethodRef, rtn: MethodRef
) -> None:
    compiled = replace(bench, decode_mode="compiled")
    records = [bench.quality(none), bench.quality(rtn, damage=0.1)]
    records += [bench.performance(none), bench.performance(rtn, 0.5)]
    records += [compiled.performance(none, 4.0), compiled.failed(compiled.spec("performance", rtn), "unsupported")]
    table = only(records)
    rows = {row.label: row for row in table.rows}
    assert list(rows) == [none.label, f"{none.label} · compiled", rtn.label, f"{rtn.label} · compiled"]
    assert rows[f"{none.label} · compiled"].speeds[0].decode_tok_per_s.value == pytest.approx(80, rel=0.05)
    assert rows[f"{none.label} · compiled"].speeds[0].decode_ratio is None
    assert rows[rtn.label].speeds[0].decode_ratio.value == pytest.approx(0.5, rel=0.01)
    assert rows[rtn.label].status == "ok"
    assert rows[f"{rtn.label} · compiled"].status == "unsupported"
    assert rows[f"{rtn.label} · compiled"].perplexity == rows[rtn.label].perplexity
    assert len(table.grid) == 1


def test_quality_is_judged_once_in_however_many_decode_modes(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    compiled = replace(bench, decode_mode="compiled")
    records = [bench.quality(none), bench.quality(rtn, damage=0.1), bench.performance(none), bench.performance(rtn)]
    eager = only(records).rows[-1].perplexity_comparison
    records += [compiled.performance(none), compiled.performance(rtn)]
    assert [row.perplexity_comparison for row in only(records).rows[-2:]] == [eager, eager]


def test_a_cache_is_a_row_with_a_quality_of_its_own_beside_the_same_baseline(
    bench: Bench, none: MethodRef, rtn: MethodRef
) -> None:
    packed = replace(bench, kv_cache="int4")
    records = [bench.quantize(rtn), bench.quality(none), bench.quality(rtn, damage=0.01), bench.performance(none)]
    records += [packed.quality(none, damage=0.02), packed.quality(rtn, damage=0.03), packed.performance(none, 0.5)]
    table = only(records)
    rows = {each.label: each for each in table.rows}
    assert set(rows) == {none.label, f"{none.label} · int4 cache", rtn.label, f"{rtn.label} · int4 cache"}
    assert table.baseline is rows[none.label]
    cached = rows[f"{none.label} · int4 cache"]
    assert not cached.is_baseline
    assert cached.perplexity_change.value > 0
    assert cached.speeds[0].decode_ratio.value == pytest.approx(0.5)
    assert {each.quantize_s for each in rows.values() if each.method == "rtn"} == {rows[rtn.label].quantize_s} != {None}


def test_the_unquantized_model_on_another_engine_is_a_row_and_all_are_held_against_the_main_ones(
    bench: Bench, none: MethodRef, rtn: MethodRef
) -> None:
    other = replace(bench, engine="llamacpp", torch="another")
    records = [other.quality(none, damage=1e-4), other.quality(rtn, damage=0.01), other.performance(none, 5.0)]
    records += [other.performance(rtn, 6.0), bench.quality(none), bench.performance(none)]
    table = only(records)
    base, *others = sorted(table.rows, key=lambda each: not each.is_baseline)
    assert base.engine == "transformers"
    assert table.baseline is base
    assert [each.is_baseline for each in others] == [False, False]
    for each, damage, faster in zip(sorted(others, key=lambda each: each.method), (1e-4, 0.01), (5, 6), strict=True):
        assert each.kl_mean.value == pytest.approx(damage, rel=0.2)
        assert each.perplexity_change.value == pytest.approx(damage, rel=0.2)
        assert each.speeds[0].decode_ratio.value == pytest.approx(faster, rel=0.02)
    alone = only([each for each in records if each.spec.engine == "llamacpp"])
    assert alone.baseline is not None, "where the main engine did not run, another's baseline is the baseline"
    assert alone.baseline.engine == "llamacpp"


def test_a_baseline_of_another_session_is_no_baseline(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    later = replace(bench, session="s2", day=2)
    table = only([bench.performance(none), later.performance(rtn, 2.0)])
    speed = row(table, "rtn 4-bit").speeds[0]
    assert speed.decode_ratio is None
    assert any("not timed in the same session" in note for note in table.notes)


def test_each_variant_stands_beside_the_baseline_of_its_own_session(
    bench: Bench, none: MethodRef, rtn: MethodRef
) -> None:
    """The machine was half as fast on the second day, when the baseline was timed again, the variant not."""
    later = replace(bench, session="s2", day=2)
    table = only([bench.performance(none), bench.performance(rtn, 2.0), later.performance(none, 0.5)])
    base, entry = row(table, "unquantized").speeds[0], row(table, "rtn 4-bit").speeds[0]
    assert base.decode_tok_per_s.value == pytest.approx(10, rel=0.05)  # type: ignore[union-attr]
    assert entry.decode_ratio.value == pytest.approx(2, rel=0.01)  # type: ignore[union-attr]


def test_the_best_session_that_ended_well_counts(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    second, third = replace(bench, session="s2", day=2), replace(bench, session="s3", day=3)
    runs = [bench.performance(rtn, 1.0), second.performance(rtn, 2.0)]
    runs.append(third.failed(third.spec("performance", rtn), "timeout"))
    entry = row(only(runs), "rtn 4-bit")
    assert entry.speeds[0].decode_tok_per_s.value == pytest.approx(40, rel=0.05)  # type: ignore[union-attr]


def test_one_repetition_made_again_does_not_stand_for_the_rest(bench: Bench, rtn: MethodRef) -> None:
    """A resumed sweep makes only what is missing: three processes of the first day count, not one of the second."""
    second = replace(bench, session="s2", day=2)
    runs = [bench.performance(rtn, 1.0, repetition) for repetition in range(3)] + [second.performance(rtn, 2.0, 3)]
    speed = row(only(runs), "rtn 4-bit").speeds[0]
    assert speed.decode_tok_per_s.n == 3  # type: ignore[union-attr]
    assert speed.decode_tok_per_s.value == pytest.approx(20, rel=0.05)  # type: ignore[union-attr]


def test_unlike_workloads_are_unlike_grid_points(bench: Bench, none: MethodRef) -> None:
    table = only([bench.performance(none, 1.0, 0, (128, 512))])
    assert [point.prompt_tokens for point in table.grid] == [128, 512]
    assert table.rows[0].speeds[0].point == table.grid[0]  # type: ignore[union-attr]


def test_a_later_attempt_supersedes_an_earlier_one(bench: Bench, rtn: MethodRef) -> None:
    failed = bench.failed(bench.spec("quality", rtn))
    assert row(only([failed, bench.quality(rtn, 4.5, 0.1)]), "rtn 4-bit").status == "ok"


def test_a_later_failure_does_not_hide_what_ended_well(bench: Bench, rtn: MethodRef) -> None:
    well = bench.quality(rtn, 4.5, 0.1)
    entry = row(only([well, bench.failed(bench.spec("quality", rtn))]), "rtn 4-bit")
    assert entry.status == "ok"
    assert entry.perplexity is not None


def test_order_of_the_list_does_not_matter(bench: Bench) -> None:
    records = bench.sweep()
    forwards, backwards = only(records), only(records[::-1])
    assert forwards.rows == backwards.rows


def test_a_failed_quality_run_leaves_the_speeds(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    runs = [bench.quality(none), bench.failed(bench.spec("quality", rtn), "crashed", "boom\nmore", "forward")]
    runs += [bench.performance(none), bench.performance(rtn, 2.0)]
    entry = row(only(runs), "rtn 4-bit")
    assert entry.status == "crashed"
    assert entry.reason == "quality, forward: boom"
    assert entry.perplexity is None
    assert entry.stored_bytes is None
    assert entry.speeds


def test_the_reason_is_the_root_cause(bench: Bench) -> None:
    method = MethodRef("gptq", 1, {"bits": 4}, "gptq 4-bit", "offline")
    runs = [bench.failed(bench.spec("quantize", method), "out_of_memory", "killed", "quantize")]
    runs.append(bench.failed(bench.spec("quality", method), "unsupported", "no artifact", "plan"))
    entry = row(only(runs), "gptq 4-bit")
    assert (entry.status, entry.reason) == ("out_of_memory", "quantize: killed")


@pytest.mark.parametrize(("named", "status"), [(None, "ok"), ("another", "ok"), ("failed", "out_of_memory")])
def test_quantizing_from_disk_that_failed_says_nothing_of_what_was_measured_without_it(
    bench: Bench, none: MethodRef, named: str | None, status: str
) -> None:
    method = MethodRef("bnb-nf4", 1, {}, "nf4", "on_load")
    failed = bench.failed(bench.spec("quantize", method), "out_of_memory", "killed", "quantize")
    made = {"another": "0" * 16, "failed": failed.spec.run_id}
    entry = row(only([bench.quality(none), failed, quality_of(bench, method, made.get(named or ""))]), "nf4")
    assert entry.status == status
    alone = row(only([bench.quality(none), failed]), "nf4")
    assert alone.status == "out_of_memory"


@pytest.mark.parametrize("stage", ["on_load", "offline"])
def test_a_later_run_that_failed_to_quantize_does_not_hide_the_one_whose_result_was_measured(
    bench: Bench, none: MethodRef, stage: str
) -> None:
    method = MethodRef("bnb-nf4", 1, {}, "nf4", stage)  # type: ignore[arg-type]
    made = bench.quantize(method)
    measured = quality_of(bench, method, made.spec.run_id)
    failed = bench.failed(changed(made.spec, method_version=2), "failed", "it broke", "quantize")
    entry = row(only([bench.quality(none), made, measured, failed]), "nf4")
    assert (entry.status, entry.quantize_s) == ("ok", pytest.approx(184.3))


def quality_of(bench: Bench, method: MethodRef, quantize: str | None) -> RunRecord:
    """A quality run that reads what the run with this id made, or of a model that it quantized itself."""
    measured = bench.quality(method, 4.5)
    needs = {"quantize": quantize} if quantize else {}
    return replace(measured, spec=replace(measured.spec, needs={**measured.spec.needs, **needs}))


def test_a_failed_reference_is_noted(bench: Bench, none: MethodRef) -> None:
    table = only([bench.failed(bench.spec("reference", none)), bench.quality(none)])
    assert table.notes == ("reference of SmolLM2-135M: failed: it broke",)


def test_divergence_and_its_noise_floor(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    table = only([bench.reference(), bench.quality(none), bench.quality(rtn, 4.5, 0.2)])
    entry = row(table, "rtn 4-bit")
    assert table.kl_noise_floor is not None
    assert 0 < table.kl_noise_floor.value < 1e-8
    assert table.kl_noise_floor_dtype is not None
    assert table.kl_noise_floor_dtype.value == pytest.approx(1000 * table.kl_noise_floor.value)
    assert entry.kl_mean.value == pytest.approx(0.2, rel=0.2)  # type: ignore[union-attr]
    assert entry.kl_mean.n == bench.windows  # type: ignore[union-attr]
    mean = entry.kl_mean.value  # type: ignore[union-attr]
    quantiles = [figures()[name].of(entry, WHOLE) for name in ("kl_median", "kl_p90", "kl_p99", "kl_p99_9", "kl_max")]
    assert quantiles == sorted(set(quantiles))
    assert quantiles[0] < mean < quantiles[1]
    assert entry.top1_agreement.high <= 1  # type: ignore[union-attr, operator]
    for name, expected in (
        ("kl_reverse_mean", 1.1 * mean),
        ("kl_batch_noise", 1e-6 * mean),
        ("delta_p", -0.01 * mean),
        ("top5_agreement", (1 + entry.top1_agreement.value) / 2),  # type: ignore[union-attr]
    ):
        assert figures()[name].of(entry, WHOLE).value == pytest.approx(expected), name


def test_a_floor_of_before_there_was_a_second_kind_is_of_the_batch(bench: Bench, none: MethodRef) -> None:
    reference = bench.reference()
    old = replace(reference.outcome.measurements[0], protocol={"batch_size": 2})
    table = only([replace(reference, outcome=replace(reference.outcome, measurements=(old,))), bench.quality(none)])
    assert table.kl_noise_floor is not None
    assert table.kl_noise_floor_dtype is None


def test_the_noise_floor_of_another_text_is_not_this_one(bench: Bench, none: MethodRef) -> None:
    table = only([replace(bench, text="other").reference(), bench.quality(none)])
    assert table.kl_noise_floor is None


def test_cost_of_quantizing(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    offline = MethodRef("gptq", 1, {"bits": 4}, "gptq 4-bit", "offline")
    table = only([bench.quantize(offline), bench.quality(offline, 4.5, 0.1), bench.quality(rtn, 4.5, 0.1)])
    assert row(table, "gptq 4-bit").quantize_s == 184.3
    assert row(table, "gptq 4-bit").quantize_peak_bytes == 2**31
    assert row(table, "rtn 4-bit").quantize_s == pytest.approx(4.3)


def test_a_streamed_run_shows_neither_its_memory_nor_a_time_of_quantizing(bench: Bench, rtn: MethodRef) -> None:
    """Its layers are quantized anew in every pass, and its process never holds the model."""
    whole = bench.quality(rtn, 4.5, 0.1)
    found = whole.outcome.measurements
    after = tuple(replace(each, metric="memory_after_bytes") for each in found if each.metric == "peak_memory_bytes")
    whole = replace(whole, outcome=replace(whole.outcome, measurements=(*found, *after)))
    conditions = replace(whole.spec.job.conditions, residency="streamed")
    cut = replace(whole, spec=replace(whole.spec, job=replace(whole.spec.job, conditions=conditions)))
    resident, streamed = (row(only([each]), "rtn 4-bit") for each in (whole, cut))
    assert resident.quantize_s == pytest.approx(4.3)
    assert resident.peaks
    assert resident.left
    assert (streamed.quantize_s, streamed.peaks, streamed.left) == (None, (), ())
    assert streamed.kl_mean == resident.kl_mean


def test_a_streamed_run_that_quantized_each_part_once_has_that_cost_and_no_other(bench: Bench, rtn: MethodRef) -> None:
    """Before it computes anything, part by part. Beside a run with the model in memory, that one's cost is shown."""
    whole = bench.quality(rtn, 4.5, 0.1)
    phases = [replace(phase, wall_s=2 * phase.wall_s) for phase in whole.outcome.phases]
    peaks = tuple(
        replace(each, values=tuple(value / 2 for value in each.values), protocol={**each.protocol, "phase": phase})
        for each in whole.outcome.measured("peak_memory_bytes")
        for phase in ("quantize_on_load", "forward")
    )
    labels = (Label("streamed", {}), Label("quantized_in_parts", {}))
    outcome = replace(whole.outcome, phases=tuple(phases), measurements=peaks, labels=labels)
    conditions = replace(whole.spec.job.conditions, residency="streamed")
    cut = replace(whole, spec=replace(whole.spec, job=replace(whole.spec.job, conditions=conditions)), outcome=outcome)
    streamed = row(only([cut]), "rtn 4-bit")
    assert streamed.quantize_s == pytest.approx(8.6)
    assert streamed.quantize_peak_bytes == max(value for peak in peaks for value in peak.values)
    assert (streamed.peaks, streamed.left) == ((), ())


def test_peaks_are_the_largest_of_the_repetitions(bench: Bench, none: MethodRef) -> None:
    entry = only([bench.performance(none, 1.0, n) for n in range(3)]).rows[0]
    loading = [peak.bytes for peak in entry.peaks if peak.phase == "load"]
    assert loading == [612 * 2**20 + 2]


def test_the_front_is_marked(bench: Bench) -> None:
    table = only(bench.sweep())
    assert row(table, "gptq 4-bit g64").front
    assert not row(table, "rtn 4-bit g32").front
    assert not row(table, "awq 4-bit g64").front


def test_labels_of_a_run_stay_with_its_row(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    run = bench.quality(rtn, 4.5, 0.1)
    fallback = Label("kernel_fell_back", {"layers": 28, "family": "dequantize", "expected": "packed"})
    run = replace(run, outcome=replace(run.outcome, labels=(*run.outcome.labels, fallback)))
    table = only([bench.quality(none), run])
    assert row(table, "rtn 4-bit").labels == (fallback,)
    assert table.labels == (Label("natively_quantized", {"quantization": "Q4_1", "degridded": True}),)


def test_methods_with_libraries_of_their_own_share_the_baseline(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    """Their locks differ, what the baseline runs on does not."""
    base, variant = bench.quality(none), bench.quality(rtn, 4.5, 0.1)
    assert base.spec.environment.lock != variant.spec.environment.lock
    assert row(only([base, variant]), "rtn 4-bit").perplexity_change is not None


def test_sizes_come_from_a_speed_run_where_nothing_was_scored(bench: Bench, rtn: MethodRef) -> None:
    timed, scored = bench.performance(rtn), bench.quality(rtn, 4.5)
    both = (*timed.outcome.measurements, *scored.outcome.measurements[3:])
    entry = row(only([replace(timed, outcome=replace(timed.outcome, measurements=both))]), "rtn 4-bit")
    assert entry.bits_per_weight == pytest.approx(4.5)
    assert entry.coverage == 1


def test_a_divergence_is_held_against_its_noise_floor_and_never_against_zero(bench: Bench) -> None:
    (table,) = tradeoff(bench.sweep())
    found = {row.label: row.kl_comparison for row in table.rows}
    assert found["unquantized"] is None
    rough = found["rtn 2-bit g64"]
    assert rough is not None
    assert rough.verdict == "worse"
    at_noise = bench.quality(MethodRef("rtn", 1, {"bits": 16}, "rtn 16-bit", "on_load"), 16, 1e-7)
    (table,) = tradeoff([*bench.sweep(), at_noise])
    harmless = next(row.kl_comparison for row in table.rows if row.label == "rtn 16-bit")
    assert harmless is not None
    assert harmless.verdict == "equivalent"


def test_a_baseline_of_another_node_is_no_baseline(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    """In one session, on two machines of one hardware class. Where both were timed together, they are compared."""
    far = replace(bench.performance(rtn, 2.0), node="node-2")
    table = only([replace(bench.performance(none), node="node-1"), far])
    speed = row(table, "rtn 4-bit").speeds[0]
    assert speed.decode_ratio is None
    assert any(
        "speed is incomparable, the baseline was not timed in the same session on node-2" in each
        for each in table.notes
    )
    beside = [replace(bench.performance(method, faster), node="node-2") for method, faster in ((none, 0.5), (rtn, 2.0))]
    table = only([replace(bench.performance(none), node="node-1"), *beside])
    speed = row(table, "rtn 4-bit").speeds[0]
    assert speed.decode_ratio.value == pytest.approx(4.0, rel=0.02)


def test_a_table_says_how_good_the_forecast_of_its_runs_was(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    first, second = bench.quality(none), bench.quality(rtn, 4.5, 0.1)
    assert not [note for note in only([first, second]).notes if "forecast" in note]
    first = replace(first, wall_s=100.0, forecast=Forecast(80.0, 60.0, 120.0, "arithmetic"))
    assert (
        "the runs took 1 min 40 s and were forecast to take 1 min 20 s; 1 of 1 within their ranges"
        in only([first]).notes
    )
    second = replace(second, wall_s=20.0, forecast=Forecast(40.0, 30.0, 50.0, "alike"))
    assert only([first, second]).notes[-1].startswith("the runs took 2 min 00 s and were forecast to take 2 min 00 s")
    assert only([first, second]).notes[-1].endswith("; 1 of 2 within their ranges")
