"""Rounding against torch, ml_dtypes, bitsandbytes, torchao and compressed-tensors, bit for bit, and its properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.errors import UnsupportedError
from harness.numerics import affine, formats, grid, scaling
from harness.numerics.error import rounding_error
from harness.numerics.formats import FORMATS, find
from harness.numerics.kinds import BlockFormat, Codebook, FloatFormat, IntFormat
from harness.numerics.rounding import Array, to_float, to_levels, up_to_float
from harness.numerics.trial import trials

pytestmark = pytest.mark.heavy

FLOATS = [form for form in FORMATS if isinstance(form, FloatFormat) and not isinstance(form, BlockFormat)]
SMALL = [form for form in FLOATS if form.values is not None]
INTEGERS = [form for form in FORMATS if isinstance(form, IntFormat)]
NORMAL = st.floats(-1e6, 1e6, width=32)


def every_kind_of_float32() -> Array:
    """Random bit patterns (subnormals, infinities, NaN among them), common sizes, and ties of every small format."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    common = np.concatenate([rng.standard_normal(50_000) * size for size in (1e-7, 1e-3, 1, 300, 60_000)])
    values = [np.array([value for value in form.values or () if math.isfinite(value)]) for form in SMALL]
    ties = [(each[1:] + each[:-1]) / 2 for each in map(np.sort, values)]
    return np.concatenate([each.astype(np.float32) for each in (patterns, common, *values, *ties)])


def same_bits(ours: Array, theirs: Array) -> bool:
    """Equal to the sign of zero; NaN is one value."""
    number = ~np.isnan(ours)
    return np.array_equal(number, ~np.isnan(theirs)) and np.array_equal(
        ours[number].view(np.uint32), theirs[number].view(np.uint32)
    )


def weights(seed: int = 0) -> Array:
    """A matrix (32, 192) with an outlier, a row of zeros and a block of small values."""
    values = (np.random.default_rng(seed).standard_normal((32, 192)) * 0.02).astype(np.float32)
    values[3, 5], values[7], values[8, :32] = 0.5, 0, values[8, :32] * 1e-3
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_casts_are_those_of_torch(dtype: torch.dtype) -> None:
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e5m2": "fp8-e5m2"}
    values = every_kind_of_float32()
    theirs = torch.from_numpy(values).to(dtype).float().numpy()
    assert same_bits(to_float(values, find(names[str(dtype).removeprefix("torch.")])), theirs)  # type: ignore[arg-type]


def test_e4m3_is_that_of_torch_in_its_range() -> None:
    """Beyond it torch saturates or gives NaN, depending on its version."""
    values = every_kind_of_float32()
    values = values[~(np.abs(values) > 464)]
    theirs = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    assert same_bits(to_float(values, formats.FP8_E4M3), theirs)
    assert same_bits(to_float(values, formats.FP8_E4M3, saturate=True), theirs)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("bf16", "bfloat16"),
        ("fp8-e4m3", "float8_e4m3fn"),
        ("fp8-e5m2", "float8_e5m2"),
        ("fp6-e3m2", "float6_e3m2fn"),
        ("fp6-e2m3", "float6_e2m3fn"),
        ("fp4-e2m1", "float4_e2m1fn"),
    ],
)
def test_casts_are_those_of_ml_dtypes(name: str, theirs: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = every_kind_of_float32()
    values = values[~np.isnan(values)]
    with np.errstate(all="ignore"):
        expected = values.astype(getattr(ml_dtypes, theirs)).astype(np.float32)
    assert same_bits(to_float(values, find(name)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "saturate", "expected"),
    [
        ("fp16", False, math.inf),
        ("fp16", True, 65504),
        ("fp8-e4m3", False, math.nan),
        ("fp8-e4m3", True, 448),
        ("fp4-e2m1", False, 6),
    ],
)
def test_past_the_largest_value(name: str, saturate: bool, expected: float) -> None:
    form = find(name)
    assert isinstance(form, FloatFormat)
    rounded = to_float(np.array([1e6, -1e6, np.inf], np.float32), form, saturate)
    np.testing.assert_array_equal(rounded, np.array([expected, -expected, expected], np.float32))


@pytest.mark.parametrize("form", SMALL, ids=lambda form: form.name)
def test_every_value_survives(form: FloatFormat) -> None:
    values = np.array(form.values, np.float32)
    assert same_bits(to_float(values, form), values)
    assert same_bits(up_to_float(values[np.isfinite(values)], form), values[np.isfinite(values)])


@pytest.mark.parametrize("form", FLOATS, ids=lambda form: form.name)
@settings(deadline=None, max_examples=50)
@given(values=arrays.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
def test_rounding_twice_is_rounding_once_and_keeps_order(form: FloatFormat, values: Array) -> None:
    once = to_float(np.sort(values), form, saturate=True)
    assert same_bits(to_float(once, form, saturate=True), once)
    assert bool((once[:-1] <= once[1:]).all())
    up = up_to_float(values, form)
    assert bool((up >= values).all())


@settings(deadline=None, max_examples=50)
@given(values=arrays.arrays(np.float32, 20, elements=st.floats(-1, 1, width=32)))
def test_no_level_is_nearer_than_the_one_that_is_chosen(values: Array) -> None:
    for book in (formats.NF4, formats.BNB_FP4):
        nearest = np.abs(values[:, None] - np.array(book.levels, np.float32)).min(axis=1)
        np.testing.assert_array_equal(np.abs(values - to_levels(values, book)), nearest)


@pytest.mark.parametrize(
    ("low", "scale", "zero_point", "value", "code"), [(0, 1000 / 255, 0, 32.2, 8), (-20, 4.0, 5, 40, 15)]
)
def test_worked_examples_of_uint8(low: float, scale: float, zero_point: int, value: float, code: int) -> None:
    levels = grid.over(np.float32(low), np.float32(1000), find("uint8"), symmetric=False)  # type: ignore[arg-type]
    assert levels.scale == pytest.approx(scale, rel=1e-7)
    assert levels.zero_point == zero_point
    assert levels.codes(np.float32(value)) == code  # type: ignore[arg-type]
    assert levels.codes(np.array([low, 1000], np.float32)).tolist() == [0, 255]


@pytest.mark.parametrize("form", INTEGERS, ids=lambda form: form.name)
@pytest.mark.parametrize("symmetric", [False, True])
@settings(deadline=None, max_examples=60)
@given(low=NORMAL, high=NORMAL, shares=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20))
def test_the_affine_scheme(form: IntFormat, symmetric: bool, low: float, high: float, shares: list[float]) -> None:
    low, high = min(low, high), max(low, high)
    levels = grid.over(np.float32(low), np.float32(high), form, symmetric)  # type: ignore[arg-type]
    codes = np.arange(levels.lowest, levels.highest + 1, dtype=np.float32)
    every = levels.values(codes)
    assert np.array_equal(levels.codes(every), codes), "quantizing what was dequantized changes nothing"
    assert np.array_equal(levels.round(every), every), "every level survives"
    assert levels.round(np.float32(0)) == 0, "zero is exact"  # type: ignore[arg-type]
    inside = np.float64(every.min()) + np.array(shares) * (np.float64(every.max()) - every.min())
    values = inside.astype(np.float32)
    error = np.abs(levels.round(values).astype(np.float64) - values)
    assert bool((error <= levels.scale * (0.5 + 1e-4)).all())
    covered = np.array([low, high]) if not symmetric else np.array([-max(-low, high), max(-low, high)]).clip(low, high)
    ends = np.abs(levels.round(covered.astype(np.float32)) - covered)
    assert bool((ends <= levels.scale * (1 + 1e-4)).all()), "at a rounded zero point's end at most a step"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", ["tensor", "channel", 64])
@pytest.mark.parametrize("signed", [True, False])
def test_integers_are_those_that_rtn_packs(bits: int, group_size: affine.GroupSize, signed: bool) -> None:
    packed = affine.quantize(torch.from_numpy(weights()), bits, group_size, symmetric=signed)
    theirs = affine.dequantize(packed.codes, packed.scale, packed.zero_point, torch.float32).numpy()
    form = find(f"{'' if signed else 'u'}int{bits}")
    assert isinstance(form, IntFormat)
    ours = scaling.affine(weights(), form, group_size)
    assert np.array_equal(ours.values, theirs)
    if not signed:
        assert ours.scale_bits == packed.scale.numel() * (16 + bits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dtype"), [("int8", torch.qint8), ("uint8", torch.quint8)])
def test_codes_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    form, values = find(name), weights()
    assert isinstance(form, IntFormat)
    levels = grid.over(values.min(), values.max(), form, symmetric=False)
    theirs = torch.quantize_per_tensor(torch.from_numpy(values), float(levels.scale), int(levels.zero_point), dtype)
    assert np.array_equal(levels.codes(values), theirs.int_repr().numpy())


def test_values_too_large_for_their_scale_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"too large .* for FP16 scales"):
        scaling.affine(np.full((1, 4), 1e9, np.float32), formats.INTEGERS[0], "tensor")


@pytest.mark.parametrize("form", [formats.NF4, formats.BNB_FP4], ids=lambda form: form.name)
def test_codebooks_round_as_bitsandbytes_does(form: Codebook) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    kind = "nf4" if form is formats.NF4 else "fp4"
    codes, state = functional.quantize_4bit(torch.from_numpy(weights()), blocksize=64, quant_type=kind)
    theirs = functional.dequantize_4bit(codes, state).numpy()
    assert np.array_equal(scaling.coded(weights(), form).values, theirs)


def test_nvfp4_rounds_as_torchao_does() -> None:
    theirs = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    values = torch.from_numpy(weights())
    scale = theirs.per_tensor_amax_to_scale(values.abs().max())
    expected = theirs.NVFP4Tensor.to_nvfp4(values, per_tensor_scale=scale).dequantize(torch.float32).numpy()
    ours = scaling.twice_scaled(weights(), formats.NVFP4)
    assert np.array_equal(ours.values, expected)
    assert ours.scale_bits == 32 * 192 // 16 * 8 + 32


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        (formats.MXFP8, torch.float8_e4m3fn),
        (formats.MXFP8_E5M2, torch.float8_e5m2),
        (formats.MXFP4, torch.float4_e2m1fn_x2),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
def test_microscaling_rounds_as_torchao_does(form: BlockFormat, dtype: torch.dtype) -> None:
    theirs = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    expected = theirs.MXTensor.to_mx(torch.from_numpy(weights()), dtype, 32).dequantize(torch.float32).numpy()
    assert np.array_equal(scaling.microscaled(weights(), form).values, expected)


def test_fp4_is_that_of_compressed_tensors() -> None:
    helpers = pytest.importorskip("compressed_tensors.quantization.quant_args")
    values = np.linspace(-6, 6, 4801).astype(np.float32)
    theirs = helpers.FP4_E2M1_DATA.cast_to_fp4(torch.from_numpy(values.copy())).numpy()
    assert np.array_equal(to_float(values, formats.FP4_E2M1), theirs)


def test_errors_by_hand() -> None:
    error = rounding_error(np.array([3.0, -4.0, 0.0], np.float32), np.array([3.5, -4.0, 0.0], np.float32))
    assert error.sqnr_db == pytest.approx(20)
    assert (error.largest, error.mean) == (0.5, pytest.approx(0.5 / 3))
    same = np.ones(3, np.float32)
    assert rounding_error(same, same).sqnr_db == math.inf
    assert rounding_error(same, same * np.float32(np.inf)).sqnr_db == -math.inf


def test_more_bits_lose_less_and_blocks_count_their_scales() -> None:
    tried = {(trial.format, trial.scaling): trial for trial in trials(weights())}
    losses = [tried[f"INT{bits}", "FP16 for 64 columns"].error.sqnr_db for bits in (8, 4, 3, 2)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[1] == pytest.approx(4 * 6.02, abs=2)
    assert tried["INT4", "FP16 for 64 columns"].bits_per_weight == 4 + 16 / 64
    assert tried["MXFP4", "E8M0 for 32 columns"].bits_per_weight == 4.25
    assert tried["FP8 E4M3", "FP32 for a row"].bits_per_weight == 8 + 32 / 192
    assert {form for form, _ in tried} == {form.name for form in FORMATS} - {"E8M0"}


def test_a_last_group_may_be_shorter() -> None:
    values = weights()[:, :100]
    form = find("int4")
    assert isinstance(form, IntFormat)
    whole = scaling.affine(values[:, :64], form, 64), scaling.affine(values[:, 64:], form, 36)
    rounded = scaling.affine(values, form, 64)
    assert np.array_equal(rounded.values, np.hstack([part.values for part in whole]))
    assert rounded.scale_bits == sum(part.scale_bits for part in whole)


def test_a_tensor_of_zeros_is_kept_by_all() -> None:
    for trial in trials(np.zeros((2, 64), np.float32)):
        assert trial.error.largest == 0, trial.format
