"""The table of formats against torch, ml_dtypes, scipy and bitsandbytes, and the command that prints it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import probe

from harness.cli.render import formats as console_formats
from harness.errors import UsageError
from harness.numerics import formats
from harness.numerics.formats import FORMATS, find
from harness.numerics.kinds import FloatFormat, IntFormat

pytestmark = pytest.mark.heavy

DOC = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
OF_TORCH = {
    "FP32": torch.float32,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP8 E4M3": torch.float8_e4m3fn,
    "FP8 E5M2": torch.float8_e5m2,
}
OF_ML_DTYPES = {
    "BF16": "bfloat16",
    "FP8 E4M3": "float8_e4m3fn",
    "FP8 E5M2": "float8_e5m2",
    "FP6 E3M2": "float6_e3m2fn",
    "FP6 E2M3": "float6_e2m3fn",
    "FP4 E2M1": "float4_e2m1fn",
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_limits_are_those_that_torch_knows(name: str) -> None:
    form, theirs = find(name), torch.finfo(OF_TORCH[name])
    assert (form.bits, form.largest, form.lowest) == (theirs.bits, theirs.max, theirs.min)
    assert form.smallest_normal == theirs.smallest_normal


@pytest.mark.parametrize("name", OF_ML_DTYPES)
def test_limits_are_those_that_ml_dtypes_knows(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    form, theirs = find(name), ml_dtypes.finfo(getattr(ml_dtypes, OF_ML_DTYPES[name]))
    assert form.largest == float(theirs.max)
    assert form.smallest_normal == float(theirs.smallest_normal)
    assert form.smallest_subnormal == float(theirs.smallest_subnormal)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_every_code_of_8_bits_means_what_torch_reads(dtype: torch.dtype) -> None:
    form = find({"e4m3fn": "fp8-e4m3", "e5m2": "fp8-e5m2", "e8m0fnu": "e8m0"}[str(dtype).rpartition("_")[2]])
    read = torch.arange(256, dtype=torch.uint8).view(dtype).float().tolist()
    assert form.values is not None
    assert [repr(value) for value in form.values] == [repr(value) for value in read]


def test_every_code_of_the_smaller_floats_means_what_ml_dtypes_reads() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("FP6 E3M2", "FP6 E2M3", "FP4 E2M1"):
        form = find(name)
        codes = np.arange(2**form.bits, dtype=np.uint8).view(getattr(ml_dtypes, OF_ML_DTYPES[name]))
        assert form.values == tuple(codes.astype(np.float64).tolist()), name


def test_fp4_by_hand() -> None:
    """OCP Microscaling Formats 1.0, table 5."""
    half = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert find("fp4 e2m1").values == half + tuple(-value for value in half)


def test_nf4_is_made_of_the_quantiles_of_its_paper() -> None:
    """arXiv:2305.14314: 8 quantiles below zero, 9 with zero above, from 1 − 0.9677083 on, scaled to ±1."""
    from scipy.stats import norm

    above = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(0.9677083, 0.5, 8)[:-1])
    levels = np.sort([*below, 0.0, *above]) / above.max()
    np.testing.assert_allclose(formats.NF4_LEVELS, levels, atol=2e-7)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codebooks_are_those_of_bitsandbytes(kind: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    levels = formats.NF4_LEVELS if kind == "nf4" else formats.BNB_FP4_LEVELS
    assert functional.get_4bit_type(kind, device="cpu").tolist() == list(levels)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_what_a_format_says_of_itself_agrees_with_its_values(form: formats.Format) -> None:
    if isinstance(form, FloatFormat):
        assert form.bits == 1 + form.exponent_bits + form.mantissa_bits
    if form.values is None:
        assert form.bits > 8
        return
    finite = [value for value in form.values if math.isfinite(value)]
    positive = sorted(value for value in finite if value > 0)
    assert (min(finite), max(finite)) == (form.lowest, form.largest)
    assert positive[0] == (form.smallest_subnormal or form.smallest_normal)
    assert form.smallest_normal in positive
    assert sum(math.isnan(value) for value in form.values) == form.nans
    assert (math.inf in form.values) == form.infinities
    assert len(form.values) == 2**form.bits


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("int8", -128, 127), ("int4", -8, 7), ("int2", -2, 1), ("uint8", 0, 255), ("uint4", 0, 15), ("uint2", 0, 3)],
)
def test_integers(name: str, low: int, high: int) -> None:
    form = find(name)
    assert isinstance(form, IntFormat)
    assert (form.lowest, form.largest) == (low, high)
    assert sorted(form.values or ()) == list(range(low, high + 1))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp32", 32),
        ("tf32", 32),
        ("bf16", 16),
        ("mxfp8", 8.25),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("nf4", 4.5),
        ("int4", 4),
    ],
)
def test_stored_bits_count_the_scales_of_blocks(name: str, bits: float) -> None:
    assert find(name).bits_per_value == bits


@pytest.mark.parametrize(("name", "digits"), [("fp32", 7.22), ("fp16", 3.31), ("bf16", 2.41), ("uint8", 2.41)])
def test_decimal_precision(name: str, digits: float) -> None:
    assert find(name).digits == pytest.approx(digits, abs=0.005)


def test_a_format_is_found_however_it_is_spelt() -> None:
    assert find("fp8_e4m3") is find("FP8-E4M3") is find("fp8e4m3") is formats.FP8_E4M3
    with pytest.raises(UsageError, match="unknown format 'int5'; did you mean 'int"):
        find("int5")


def test_the_table_needs_no_array_library() -> None:
    ended = probe("formats", "nf4")
    assert ended.imported.isdisjoint(("numpy", "torch", "pandas"))
    assert "0.07958" in ended.output


def test_json_is_one_object_a_format_and_has_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    console_formats.show_all(FORMATS, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["format"] for line in lines] == [form.name for form in FORMATS]
    console_formats.show_one(formats.FP8_E5M2, as_json=True)
    values = json.loads(capsys.readouterr().out)["values"]
    assert (values[0x7B], values[0x7C], values[0xFC], values[0x7D]) == (57344, "inf", "-inf", "nan")


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_nothing_is_cut_off_in_80_columns(
    form: formats.Format, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console_formats.show_one(form, as_json=False)
    shown = capsys.readouterr().out
    assert shown.startswith(form.name)
    assert "…" not in shown.replace(" … ", "")


def test_the_document_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console_formats.show_all(FORMATS, as_json=False)
    table = capsys.readouterr().out.splitlines()[: len(FORMATS) + 1]
    assert "\n".join(line.rstrip() for line in table) in DOC.read_text(encoding="utf-8")
