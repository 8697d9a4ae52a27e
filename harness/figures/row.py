"""One row of the trade-off table, from the records that describe one variant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from harness.core.label import Label, codes
from harness.core.model import MAIN_ENGINE
from harness.core.protocols import DEVICE_PEAKS
from harness.core.record import Measurement, RunRecord
from harness.figures.derived.answers import answer_figures
from harness.figures.derived.breakdown import by_confidence, by_position, growth
from harness.figures.derived.divergences import token_divergence
from harness.figures.derived.energies import energies
from harness.figures.derived.experts import expert_audit
from harness.figures.derived.footprint import POOL, footprint
from harness.figures.derived.roofline import bounds, rates
from harness.figures.derived.scores import NATS_MARGIN, scores
from harness.figures.derived.serving import under_load
from harness.figures.derived.speeds import point_of, speeds
from harness.figures.divergence import HARMLESS_NAT
from harness.figures.evidence import Evidence
from harness.figures.table import GridPoint, Peak, StoredPart, TaskScore, VariantRow
from harness.stats.comparison import Comparison
from harness.stats.estimate import Estimate, clustered_mean, exponential, perplexity, transformed
from harness.stats.influence import Influence, of_difference, of_mean
from harness.stats.rule import above_noise_floor, compare, excess

BYTES_PER_16_BIT_PARAMETER = 2


def row(evidence: Evidence, label: str) -> tuple[VariantRow, tuple[str, ...]]:
    """The row, and notes on what could not be compared. Figures come only from runs that give some."""
    variant = evidence.variant
    fault = next((run for run in evidence.all if run.status != "ok"), None)
    quality = evidence.quality if evidence.quality and evidence.quality.status == "ok" else None
    timed = tuple(run for run in evidence.performance if run.status == "ok")
    loaded = tuple(run for run in evidence.serving if run.gives_figures)
    baseline_loaded = () if evidence.is_baseline else evidence.baseline_serving
    loads, ladders = under_load(loaded, baseline_loaded, evidence.control_serving)
    baseline_timed = () if evidence.is_baseline else evidence.baseline_performance
    timings = speeds(timed, baseline_timed, evidence.control_performance)
    well = evidence.with_figures
    kl, confidence = _values(quality, "kl"), _values(quality, "baseline_confidence")
    nll = _values(quality, "nll")
    stock = next((run for run in well if run.find("stored_bytes")), None)
    coverage = _values(stock, "coverage")
    compared, notes = _compared(evidence, nll)
    over, unlike = _over_control(evidence, kl)
    over_perplexity, unlike_text = _perplexity_over_control(evidence, nll)
    notes += (*unlike, *unlike_text)
    baseline_tasks = () if evidence.is_baseline else evidence.baseline_tasks
    answered, task_notes = scores(evidence.tasks, baseline_tasks, evidence.control_tasks)
    notes += task_notes
    linear = _stored_bytes(stock, "linear")
    whole = [run for run in well if not _streamed(run)]
    in_parts = [run for run in well if _streamed(run) and "quantized_in_parts" in codes(run.outcome.labels)]
    peaks = _peaks(whole, "peak_memory_bytes")
    made = VariantRow(
        label=label,
        evidence=evidence,
        method=variant.method.name,
        engine=variant.engine_label,
        is_baseline=evidence.is_baseline,
        status=fault.status if fault else "ok",
        decode_mode=evidence.decode_mode,
        kv_cache=variant.kv_cache,
        reason=reason(fault) if fault else None,
        labels=tuple(
            dict.fromkeys(
                (
                    *(label for run in evidence.all for label in run.outcome.labels),
                    *_not_separated(evidence, kl, over, answered),
                )
            )
        ),
        facts=tuple(dict.fromkeys(fact for run in well for fact in run.outcome.facts)),
        perplexity=perplexity(nll) if nll else None,
        perplexity_change=_relative(compared) if compared else None,
        perplexity_influence=_perplexity_influence(evidence, nll) if compared else None,
        perplexity_comparison=compared,
        word_perplexity=_per(quality, "nll_per_word", exponential),
        byte_perplexity=_per(quality, "nll_per_byte", exponential),
        bits_per_byte=_per(quality, "nll_per_byte", lambda nat: nat / math.log(2)),
        kl_mean=_mean(quality, "kl", 0, math.inf),
        kl_influence=of_mean(kl) if kl else None,
        kl_comparison=_above_noise(evidence, kl, over),
        kl_control=_mean(evidence.control, "kl", 0, math.inf),
        kl_excess=over.effect if over else None,
        perplexity_over_control=over_perplexity,
        kl_by_position=by_position(kl) if kl else (),
        kl_by_confidence=by_confidence(kl, confidence) if kl and confidence else (),
        kl_growth=growth(kl) if kl else None,
        divergence=token_divergence(well),
        experts=expert_audit(well),
        top1_agreement=_mean(quality, "top1_agreement", 0, 1),
        top1_agreement_control=_mean(evidence.control, "top1_agreement", 0, 1),
        tasks=answered,
        answers=answer_figures(evidence.tasks, baseline_tasks),
        coverage=coverage.values[0] if coverage else None,
        stored=_stored(stock),
        bits_per_weight=_over(8 * linear, _parameters(stock, "linear")),
        checkpoint_bits_per_weight=_checkpoint_bits(stock),
        size_ratio=_over(_stored_bytes(stock), BYTES_PER_16_BIT_PARAMETER * _parameters(stock)),
        linear_ratio=_over(linear, BYTES_PER_16_BIT_PARAMETER * _parameters(stock, "linear")),
        checkpoint_file_bytes=_file_bytes(stock),
        peaks=peaks,
        left=_peaks(whole, "memory_after_bytes"),
        footprint=footprint(timed),
        kv_cache_pool_bytes=_pool_bytes(well),
        speeds=timings,
        bounds=bounds(timed, timings, rates(evidence.machine) if evidence.machine else None),
        energies=energies(timed),
        served=loads,
        ladders=ladders,
        quantize_s=_quantize_s([*whole, *in_parts]),
        quantize_peak_bytes=_quantize_peak(peaks) or _quantize_peak(_peaks(in_parts, "peak_memory_bytes")),
    )
    if made.speeds and not evidence.is_baseline and not evidence.baseline_performance:
        node = timed[0].node
        where = f"in the same session on {node}" if node else "in the same session"
        verdict = "speed is incomparable" if node else "speed stands alone"
        notes = (*notes, f"{verdict}, the baseline was not timed {where}")
    if made.served and not evidence.is_baseline and not evidence.baseline_serving:
        notes = (*notes, "the load stands alone, the baseline's server was not measured in the same session")
    return made, notes


def reason(run: RunRecord) -> str:
    """Where and why a run ended, in one line."""
    failure = run.outcome.failure
    if failure is None:
        return f"{run.spec.kind}: {run.status}"
    first = next(iter(failure.message.strip().splitlines()), failure.type)
    place = run.spec.kind if failure.phase == run.spec.kind else f"{run.spec.kind}, {failure.phase}"
    return f"{place}: {first}"


def _compared(evidence: Evidence, nll: Measurement | None) -> tuple[Comparison | None, tuple[str, ...]]:
    """The paired comparison of log-perplexity; None with a note if no baseline is comparable."""
    if nll is None or evidence.quality is None or evidence.is_baseline:
        return None, ()
    theirs = _values(evidence.baseline_quality, "nll")
    if theirs is None:
        return None, ("perplexity stands alone, no baseline was measured with the same libraries",)
    try:
        return compare(nll, theirs, NATS_MARGIN, "lower"), ()
    except ValueError as error:
        return None, (f"perplexity stands alone, {error}",)


def _perplexity_influence(evidence: Evidence, nll: Measurement | None) -> Influence | None:
    theirs = _values(evidence.baseline_quality, "nll")
    return of_difference(nll, theirs) if nll and theirs else None


def _over_control(evidence: Evidence, kl: Measurement | None) -> tuple[Comparison | None, tuple[str, ...]]:
    """The divergence compared with that of the control; None with a note if they cannot be paired."""
    control = _values(evidence.control, "kl")
    if kl is None or control is None:
        return None, ()
    try:
        return excess(kl, control, HARMLESS_NAT), ()
    except ValueError as error:
        return None, (f"the excess of KL over the engine's control is not known, {error}",)


def _perplexity_over_control(evidence: Evidence, nll: Measurement | None) -> tuple[Estimate | None, tuple[str, ...]]:
    """The change of perplexity against the control, paired; None if the control is the baseline or the model itself."""
    theirs = _values(evidence.control, "nll")
    if nll is None or theirs is None or evidence.is_control or evidence.control is evidence.baseline_quality:
        return None, ()
    try:
        return _relative(compare(nll, theirs, NATS_MARGIN, "lower")), ()
    except ValueError as error:
        return None, (f"the change of perplexity over the engine's control is not known, {error}",)


def _relative(compared: Comparison) -> Estimate:
    """The effect of a comparison of logarithms, as a fraction."""
    return transformed(compared.effect, lambda nat: exponential(nat) - 1)


def _not_separated(
    evidence: Evidence, kl: Measurement | None, over: Comparison | None, answered: Sequence[TaskScore]
) -> tuple[Label, ...]:
    """The label of a quality or of scores that include what their engine changes, by an amount that is not known."""
    engine, quality = evidence.variant.engine_label, evidence.quality
    if engine == MAIN_ENGINE:
        return ()
    well = quality is not None and quality.status == "ok"
    text = well and not (over if kl else evidence.control)
    elsewhere = any(run.spec.engine_label != engine for run in evidence.baseline_tasks)
    tasks = elsewhere and not evidence.is_control and any(each.change and not each.over_control for each in answered)
    return (Label("engine_not_separated", {"engine": engine}),) if text or tasks else ()


def _above_noise(evidence: Evidence, kl: Measurement | None, over: Comparison | None) -> Comparison | None:
    """The divergence compared with the largest of its noise floors; None if they have no token in common.

    On another engine than that of the reference, the control's divergence, with which ``over`` compares it, is one.
    """
    if kl is None or evidence.quality is None or evidence.is_baseline:
        return None
    floor = evidence.noise_floor
    control = None if evidence.is_control else _values(evidence.control, "kl")
    if over and control and (floor is None or clustered_mean(control).value >= clustered_mean(floor).value):
        return over
    if floor is None:
        return None
    try:
        return above_noise_floor(kl, floor, HARMLESS_NAT)
    except ValueError:
        return None


def _per(run: RunRecord | None, metric: str, figure: Callable[[float], float]) -> Estimate | None:
    found = _values(run, metric)
    return transformed(clustered_mean(found), figure) if found else None


def _values(run: RunRecord | None, metric: str) -> Measurement | None:
    found = run.find(metric) if run else None
    return found if found and found.values else None


def _mean(run: RunRecord | None, metric: str, least: float, most: float) -> Estimate | None:
    found = _values(run, metric)
    return clustered_mean(found).within(least, most) if found else None


def _all(run: RunRecord | None, metric: str) -> list[Measurement]:
    return list(run.outcome.measured(metric)) if run else []


def _stored(stock: RunRecord | None) -> tuple[StoredPart, ...]:
    return tuple(
        StoredPart(str(entry.protocol["role"]), str(entry.protocol["part"]), int(sum(entry.values)))
        for entry in _all(stock, "stored_bytes")
    )


def _stored_bytes(stock: RunRecord | None, role: str | None = None) -> int:
    return sum(part.bytes for part in _stored(stock) if role in (None, part.role))


def _parameters(stock: RunRecord | None, role: str | None = None) -> float:
    return sum(sum(entry.values) for entry in _all(stock, "parameters") if role in (None, entry.protocol.get("role")))


def _checkpoint_bits(stock: RunRecord | None) -> float | None:
    """Bits of a decoder weight on disk; None if no checkpoint was made."""
    stored = sum(sum(entry.values) for entry in _all(stock, "checkpoint_bytes"))
    parameters = _values(stock, "checkpoint_parameters")
    return _over(8 * stored, parameters.values[0]) if parameters else None


def _over(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if numerator and denominator else None


def _file_bytes(stock: RunRecord | None) -> int | None:
    found = _values(stock, "checkpoint_file_bytes")
    return int(found.values[0]) if found else None


def _streamed(run: RunRecord) -> bool:
    """Whether a run had only a part of the model in memory, so that its memory and its loading are not the model's."""
    return run.spec.job.conditions.residency == "streamed" and not run.spec.job.quantizes


def _peaks(runs: Iterable[RunRecord], metric: str) -> tuple[Peak, ...]:
    largest: dict[tuple[str, str, str, GridPoint | None], int] = {}
    for run in runs:
        for entry in _all(run, metric):
            point = point_of(entry) if "prompt_tokens" in entry.protocol else None
            key = run.spec.kind, str(entry.protocol["phase"]), str(entry.protocol["source"]), point
            size = int(max(entry.values, default=0))
            largest[key] = max(size, largest.get(key, size))
    return tuple(Peak(run, phase, source, size, point) for (run, phase, source, point), size in largest.items())


def _pool_bytes(runs: Sequence[RunRecord]) -> int | None:
    """What the engine allocates for keys and values when it loads, by the first run that counted it."""
    return next((int(found.values[0]) for run in runs for found in _all(run, POOL) if found.values), None)


def _quantize_s(runs: Sequence[RunRecord]) -> float | None:
    """Wall seconds of quantizing: in a run of its own, or as a phase of loading, by the first run that has one.

    On GPUs runs may have executed at the same time: one that was alone comes first.
    """
    for name in ("quantize", "quantize_on_load"):
        for run in sorted(runs, key=lambda run: run.spec.device == "cuda" and not run.spec.job.alone):
            for phase in run.outcome.phases:
                if phase.name == name:
                    return phase.wall_s
    return None


def _quantize_peak(peaks: Sequence[Peak]) -> int | None:
    """The peak memory of the same phase: of the device if known, otherwise the resident set."""
    found = [peak for peak in peaks if peak.phase in ("quantize", "quantize_on_load")]
    on_device = [peak.bytes for peak in found if peak.source in DEVICE_PEAKS]
    return max(on_device or [peak.bytes for peak in found], default=None)
