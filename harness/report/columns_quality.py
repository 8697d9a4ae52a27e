"""The columns on how near a variant stays to the baseline: perplexity and divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.figures.formats import signed, significant
from harness.figures.table import Table, VariantRow
from harness.report.column import Column, figure
from harness.report.columns_task import task_columns
from harness.report.judgement import PAIRED, judgement, noise_words, words
from harness.stats.estimate import Estimate


def quality_columns(table: Table) -> tuple[Column, ...]:
    return (
        *_perplexity_columns(table),
        *_divergence_columns(),
        *task_columns(table),
        _coverage_column(),
        _front_column(),
    )


def _perplexity_columns(table: Table) -> tuple[Column, ...]:
    change = _estimate(
        "perplexity_change_fraction",
        "Δ perplexity",
        "%",
        f"Change against the baseline, {PAIRED}.",
        lambda row: row.perplexity_change,
    )
    other = any(row.word_perplexity for row in table.rows)
    return (
        replace(
            _estimate(
                "perplexity",
                "Perplexity",
                "",
                "exp of the mean negative log-likelihood per token, with its 95% interval.",
                lambda row: row.perplexity,
            ),
            write=lambda value: significant(value, 4),
        ),
        replace(change, write=signed, factor=100, notes=lambda row: words(row.perplexity_comparison)),
        *judgement("Quality", "perplexity_change", lambda row: row.perplexity_comparison),
        *(
            _estimate(name, heading, "", f"{heading}, as lm-eval counts words and bytes.", pick, shown=other)
            for name, heading, pick in (
                ("word_perplexity", "per word", lambda row: row.word_perplexity),
                ("byte_perplexity", "per byte", lambda row: row.byte_perplexity),
                ("bits_per_byte", "bits per byte", lambda row: row.bits_per_byte),
            )
        ),
    )


def _divergence_columns() -> tuple[Column, ...]:
    kl = "KL(baseline ‖ variant) per token: 0 is no damage"
    share = "with its 95% interval"
    return (
        replace(
            _estimate(
                "kl_mean_nat",
                "KL mean",
                "nat",
                f"{kl}. Mean {share}, clustered. Below: whether it is more than another dtype does to the baseline.",
                lambda row: row.kl_mean,
            ),
            notes=lambda row: noise_words(row.kl_comparison),
        ),
        *judgement("Quality", "kl_above_noise", lambda row: row.kl_comparison),
        _hidden("kl_median_nat", "KL median", f"{kl}. Median.", lambda row: row.kl_median),
        _hidden("kl_p90_nat", "KL p90", f"{kl}. One token in ten is hit harder.", lambda row: row.kl_p90),
        replace(
            _hidden("kl_p99_nat", "KL p99", f"{kl}. One token in a hundred is hit harder.", lambda row: row.kl_p99),
            shown=True,
        ),
        _hidden("kl_p99_9_nat", "KL p99.9", f"{kl}. One token in a thousand is hit harder.", lambda row: row.kl_p99_9),
        _hidden("kl_max_nat", "KL max", f"{kl}. The worst token.", lambda row: row.kl_max),
        _estimate(
            "kl_reverse_mean_nat",
            "KL reverse",
            "nat",
            f"KL(variant ‖ baseline) per token. Mean {share}.",
            lambda row: row.kl_reverse,
            shown=False,
        ),
        _estimate(
            "kl_batch_noise_nat",
            "Batch noise",
            "nat",
            "KL of the variant from itself when two windows share a batch. A KL that is not clearly above it is noise.",
            lambda row: row.kl_batch_noise,
            shown=False,
        ),
        _percent(
            "top1_agreement_fraction",
            "Top-1 agreement",
            f"Share of tokens for which both find the same next token most likely, {share}.",
            lambda row: row.top1_agreement,
        ),
        _percent(
            "top5_agreement_fraction",
            "Top-5 agreement",
            f"Share of the five likeliest next tokens that both have in common, {share}.",
            lambda row: row.top5_agreement,
            shown=False,
        ),
        replace(
            _percent(
                "delta_p_mean_probability",
                "Δp",
                f"Change of the probability that the text's own next token gets, mean {share}.",
                lambda row: row.delta_p,
                shown=False,
            ),
            write=signed,
        ),
    )


def _coverage_column() -> Column:
    text = "Share of the parameters in scope that are really stored quantized."
    return replace(_hidden("coverage_fraction", "Coverage", text, lambda row: row.coverage), unit="%", factor=100)


def _front_column() -> Column:
    text = (
        "How likely no other variant is better in quality (mean KL, else perplexity), stored bytes and decode speed at "
        "once: the share of draws from their intervals."
    )
    front = _hidden("front_probability", "On the front", text, lambda row: row.front_probability)
    return replace(front, unit="%", factor=100, shown=True)


def _estimate(
    name: str, heading: str, unit: str, text: str, pick: Callable[[VariantRow], Estimate | None], shown: bool = True
) -> Column:
    return Column(name, "Quality", heading, unit, text, pick, shown=shown, interval=True)


def _percent(
    name: str, heading: str, text: str, pick: Callable[[VariantRow], Estimate | None], shown: bool = True
) -> Column:
    return replace(_estimate(name, heading, "%", text, pick, shown), factor=100)


def _hidden(name: str, heading: str, text: str, pick: Callable[[VariantRow], float | None]) -> Column:
    return figure("Quality", name, heading, pick, text)
