"""The tables that ``qharness formats`` prints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from harness.figures.formats import BLANK, significant
from harness.numerics.kinds import BlockFormat, Codebook, ExponentFormat, FloatFormat, Format, IntFormat
from harness.report import escape
from harness.report.terminal import add_row, show_parts

if TYPE_CHECKING:
    from harness.models.tensor import NamedTensor
    from harness.numerics.trial import Trial


def show_all(forms: Sequence[Format], as_json: bool) -> None:
    """Every format in one line."""
    if as_json:
        for form in forms:
            _print_json(_facts(form))
        return
    table = _table("format", "bits", "S·E·M", "bias", "range", "normal", "subnormal", "digits", "× FP32")
    for form in forms:
        add_row(
            table,
            form.name,
            f"{form.bits_per_value:g}",
            form.fields or BLANK,
            BLANK if form.bias is None else str(form.bias),
            _range(form),
            _number(form.smallest_normal),
            _number(form.smallest_subnormal),
            _number(form.digits),
            _ratio(form),
        )
    show_parts(
        [
            table,
            "bits: stored bits per value with its share of a block's scale; × FP32: memory relative to FP32",
            "normal, subnormal: the smallest such value; 'qharness formats FORMAT' shows one format in full",
        ]
    )


def show_one(form: Format, as_json: bool) -> None:
    """One format in full, with its values if a code has at most 8 bits."""
    if as_json:
        values = form.values
        _print_json(_facts(form) | {"values": None if values is None else [_plain(value) for value in values]})
        return
    show_parts(_one(form))


def _one(form: Format) -> Iterator[Table | str]:
    yield f"{form.name}: {form.summary}"
    table = Table(box=None, show_header=False, pad_edge=False)
    for fact, value in _described(form):
        add_row(table, fact, value)
    yield table
    if form.values is None:
        return
    yield f"the value of each code{' (a row is one exponent)' if isinstance(form, FloatFormat) else ''}"
    yield _values(form, form.values)
    if isinstance(form, FloatFormat):
        yield f"from 0x{1 << form.bits - 1:x}: the same, negative"


def show_trials(tensor: NamedTensor, tried: Sequence[Trial], observer: str, as_json: bool) -> None:
    """The result of rounding a tensor to each format. Errors are in the tensor's own unit."""
    if as_json:
        for trial in tried:
            errors = {key: _plain(value) for key, value in asdict(trial.error).items()}
            _print_json({"tensor": tensor.name, "stored": tensor.stored, **asdict(trial), "error": errors})
        return
    shape = " × ".join(map(str, tensor.shape))
    low, high = float(tensor.values.min()), float(tensor.values.max())
    head = f"{tensor.name}: {shape}, stored as {tensor.stored}, from {significant(low)} to {significant(high)}"
    table = _table("format", "scales", "bits", "SQNR dB", "max error", "mean error", left=2)
    for trial in tried:
        error = trial.error
        numbers = (significant(trial.bits_per_weight, 4), significant(error.sqnr_db), significant(error.largest))
        add_row(table, trial.format, trial.scaling, *numbers, significant(error.mean, 2))
    show_parts([head, table, f"bits: per weight, with scales and zero points; range of integers: {observer}"])


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return table


def _facts(form: Format) -> dict[str, Any]:
    return {
        "format": form.name,
        "summary": form.summary,
        "bits": form.bits,
        "stored_bits_per_value": form.bits_per_value,
        "fields": form.fields,
        "bias": form.bias,
        "lowest": form.lowest,
        "largest": form.largest,
        "smallest_normal": form.smallest_normal,
        "smallest_subnormal": form.smallest_subnormal,
        "decimal_digits": form.digits,
        "infinities": form.infinities,
        "nan_codes": form.nans,
        "memory_of_fp32": form.bits_per_value / 32,
        "block": form.block if isinstance(form, BlockFormat | Codebook) else None,
        "scale": form.scale.name if isinstance(form, BlockFormat | Codebook) else None,
    }


def _described(form: Format) -> list[tuple[str, str]]:
    normal = "step" if isinstance(form, IntFormat) else "smallest normal"
    if form.smallest_subnormal is None and normal != "step":
        normal = "smallest positive"
    return [
        ("bits", _bits(form)),
        ("sign · exponent · mantissa", form.fields or BLANK),
        ("exponent bias", BLANK if form.bias is None else str(form.bias)),
        ("range", _range(form)),
        (normal, _number(form.smallest_normal)),
        ("smallest subnormal", _number(form.smallest_subnormal)),
        ("decimal digits", _number(form.digits)),
        ("infinities, NaN codes", f"{'yes' if form.infinities else 'no'}, {form.nans}"),
        ("memory relative to FP32", _ratio(form)),
    ]


def _values(form: Format, values: Sequence[float]) -> Table:
    """The value of each code, without the negative half of floats; a row begins with its first code."""
    count = len(values) // 2 if isinstance(form, FloatFormat) else len(values)
    per_row = 1 << form.mantissa_bits if isinstance(form, FloatFormat) else 4 if isinstance(form, ExponentFormat) else 8
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for _ in range(per_row + 1):
        table.add_column(justify="right", no_wrap=True)
    for first in range(0, count, per_row):
        shown = [_short(value) for value in values[first : min(first + per_row, count)]]
        add_row(table, f"0x{first:0{-(-form.bits // 4)}x}", *shown)
    return table


def _bits(form: Format) -> str:
    stored = form.bits_per_value
    return str(form.bits) if stored == form.bits else f"{form.bits} ({stored:g})"


def _range(form: Format) -> str:
    if form.lowest == -form.largest:
        return f"±{_number(form.largest)}"
    if isinstance(form, ExponentFormat):
        return f"≤ {_number(form.largest)}"
    return f"{_number(form.lowest)} … {_number(form.largest)}"


def _number(value: float | None) -> str:
    if value is None:
        return BLANK
    return _short(value) if abs(value) < 1e6 and value == int(value) else significant(value)


def _ratio(form: Format) -> str:
    return significant(form.bits_per_value / 32)


def _short(value: float) -> str:
    """A whole number in full, otherwise four digits, or fewer if the last are zeros."""
    if not math.isfinite(value):
        return significant(value)
    return (f"{value:.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}").replace("-", "−")


def _plain(value: float) -> float | str:
    """JSON has no infinities and no NaN."""
    return value if math.isfinite(value) else str(value)


def _print_json(content: dict[str, Any]) -> None:
    print(escape.json_text(json.dumps(content, allow_nan=False, ensure_ascii=False)))
