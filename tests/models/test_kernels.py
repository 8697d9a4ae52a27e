"""How layers multiply: rules beside the libraries' own code, run on a CPU, or asked about a GPU that is not here."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from harness.core.capability import Product
from harness.models.bitsandbytes import take_all_shapes
from harness.models.kernels import corrected, observed, product, products

pytestmark = pytest.mark.heavy

HALF, BFLOAT, FLOAT = torch.float16, torch.bfloat16, torch.float32
H100, L40S, T4, B200 = (132, 9, 0), (142, 8, 9), (40, 7, 5), (148, 10, 0)
"""Multiprocessors and compute capability, as bitsandbytes asks for them."""
CUDA = SimpleNamespace(type="cuda", index=0)


def layer(name: str, **attributes: Any) -> Any:
    """A module of a class of that name, whose one buffer says where it is."""
    module = type(name, (nn.Module,), {})()
    module.register_buffer("codes", torch.zeros(1))
    for attribute, value in attributes.items():
        setattr(module, attribute, value)
    return module


def linear_with(weight: Any) -> Any:
    """A torch.nn.Linear whose weight stands in for a tensor on a GPU."""
    module = nn.Linear(1, 1)
    del module._parameters["weight"]
    module.__dict__["weight"] = weight
    return module


def family(module: Any, inputs: torch.dtype, rows: int) -> str:
    found = product(module, inputs, rows)
    assert found is not None
    return found.family


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bitsandbytes' own code for GPUs; on import it wants a function of torch that only builds with CUDA have."""
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0, raising=False)
    from bitsandbytes.backends.cuda import ops

    module: ModuleType = ops
    return module


def four_bits(outputs: int, width: int, compute: torch.dtype | None = BFLOAT) -> Any:
    state = SimpleNamespace(shape=torch.Size((outputs, width)), blocksize=64)
    return layer("Linear4bit", weight=SimpleNamespace(device=CUDA, quant_state=state), compute_dtype=compute)


@pytest.mark.parametrize(
    ("gpu", "shape", "dtype", "packed_rows"),
    [
        (H100, (4096, 4096), BFLOAT, 7),
        (H100, (14336, 4096), BFLOAT, 32),
        (H100, (4096, 14336), FLOAT, 7),
        (L40S, (14336, 4096), BFLOAT, 128),
        (T4, (14336, 4096), HALF, 128),
        (T4, (14336, 4096), BFLOAT, 7),
        (B200, (4096, 14336), BFLOAT, 4),
    ],
)
def test_nf4_on_a_gpu_unpacks_above_the_rows_of_bitsandbytes_own_rule(
    bitsandbytes: Any, monkeypatch: pytest.MonkeyPatch, gpu: Any, shape: Any, dtype: torch.dtype, packed_rows: int
) -> None:
    monkeypatch.setattr(bitsandbytes, "_gpu_dispatch_props", lambda index: gpu)
    bitsandbytes._gemm_4bit_use_custom_cuda.cache_clear()
    module = four_bits(*shape, dtype)
    name = str(dtype).removeprefix("torch.")
    assert product(module, BFLOAT, packed_rows) == Product("packed", name)
    assert product(module, BFLOAT, packed_rows + 1) == Product("dequantize", name)
    assert product(module, BFLOAT, 4096) == Product("dequantize", name)


def test_nf4_on_a_gpu_unpacks_where_blocks_do_not_fill_a_row(
    bitsandbytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes, "_gpu_dispatch_props", lambda index: H100)
    bitsandbytes._gemm_4bit_use_custom_cuda.cache_clear()
    assert family(four_bits(4096, 4096 + 32), BFLOAT, 1) == "dequantize"


def test_nf4_unpacks_to_its_compute_dtype_or_to_that_of_its_inputs(
    bitsandbytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes, "_gpu_dispatch_props", lambda index: H100)
    bitsandbytes._gemm_4bit_use_custom_cuda.cache_clear()
    assert product(four_bits(4096, 4096, FLOAT), BFLOAT, 4096) == Product("dequantize", "float32")
    assert product(four_bits(4096, 4096, None), HALF, 4096) == Product("dequantize", "float16")


def test_a_bitsandbytes_without_a_rule_multiplies_packed_codes_in_single_rows(
    bitsandbytes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(bitsandbytes, "_gemm_4bit_use_custom_fn")
    module = four_bits(4096, 4096)
    assert [family(module, BFLOAT, rows) for rows in (1, 2, 64)] == ["packed", "dequantize", "dequantize"]


def int8_weight(*shape: int, activations: bool = True) -> Any:
    held = {"device": CUDA, "shape": shape, "act_quant_kwargs": object() if activations else None}
    return linear_with(type("Int8Tensor", (), held)())


def test_int8_inputs_on_a_gpu_are_multiplied_as_float32_below_the_rows_that_int_mm_accepts() -> None:
    module = int8_weight(4096, 4096)
    assert product(module, BFLOAT, 16) == Product("dequantize", "float32")
    assert product(module, BFLOAT, 17) == Product("packed", "int8")
    assert product(module, BFLOAT, 1, "compiled") == Product("packed", "int8")
    assert product(int8_weight(4096, 4100), BFLOAT, 64) == Product("dequantize", "int32")
    assert product(int8_weight(4096, 4096, activations=False), BFLOAT, 64) == Product("dequantize")


@pytest.mark.parametrize(
    ("name", "inputs", "rows", "expected"),
    [
        ("ExllamaV2Linear", BFLOAT, 50, Product("packed", "float16")),
        ("ExllamaV2Linear", BFLOAT, 51, Product("dequantize", "float16")),
        ("AwqGEMMLinear", BFLOAT, 1024, Product("packed", "bfloat16")),
        ("AwqGEMMLinear", BFLOAT, 1025, Product("dequantize", "bfloat16")),
        ("MarlinLinear", BFLOAT, 4096, Product("packed", "bfloat16")),
        ("Linear8bitLt", HALF, 1, Product("packed", "int8")),
        ("TorchLinear", HALF, 1, Product("dequantize")),
        ("PackedLinear", FLOAT, 1, Product("dequantize")),
        ("GGUFCudaKernel", FLOAT, 1, Product("packed")),
        ("AwqTorchLinear", FLOAT, 1, Product("dequantize", "float16")),
        ("AwqTorchLinear", BFLOAT, 1, Product("dequantize", "bfloat16")),
        ("TorchFusedLinear", FLOAT, 1, Product("packed", "bfloat16")),
        ("TorchFusedAwqLinear", HALF, 1, Product("packed", "float16")),
    ],
)
def test_a_class_of_modules_has_its_kernel(name: str, inputs: torch.dtype, rows: int, expected: Product) -> None:
    assert product(layer(name), inputs, rows) == expected


def test_a_kernel_for_weights_alone_multiplies_in_16_bits_on_a_gpu_and_in_its_inputs_dtype_on_a_cpu() -> None:
    module = layer("MarlinLinear")
    assert product(module, FLOAT, 1) == Product("packed", "float32")
    module._buffers["codes"] = torch.zeros(1, device="meta")  # not the CPU
    assert product(module, FLOAT, 1) == Product("packed", "float16")


def test_other_modules_have_no_product_and_a_wrapped_layer_is_not_counted_twice() -> None:
    assert product(nn.LayerNorm(4), FLOAT, 1) is None
    assert product(nn.Linear(4, 4), FLOAT, 1) == Product("plain")
    assert product(layer("Linear4bit", base_layer=nn.Linear(4, 4)), FLOAT, 1) is None


def operations(module: nn.Module, inputs: torch.Tensor) -> set[str]:
    """The operations of torch and of bitsandbytes that a layer runs, once it has repacked what it repacks."""
    from torch.profiler import ProfilerActivity, profile

    with torch.inference_mode():
        module(inputs)
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            module(inputs)
    return {event.key for event in trace.key_averages()}


def test_nf4_on_a_cpu_unpacks_unless_bitsandbytes_has_repacked_it() -> None:
    """On a processor without AVX512-BF16, whose rule is the module's own attribute, and on one with it."""
    import bitsandbytes as bnb
    from bitsandbytes.functional import has_avx512bf16

    for able in {False, bool(has_avx512bf16())}:
        module = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=BFLOAT, quant_type="nf4").to("cpu").eval()
        module.support_avx512bf16_for_cpu = able
        ran = operations(module, torch.zeros(3, 64, dtype=torch.bfloat16))
        unpacks = any("dequantize" in name for name in ran)
        assert unpacks is not any("gemv" in name for name in ran)
        assert product(module, BFLOAT, 3) == Product("dequantize" if unpacks else "packed", "bfloat16")


@pytest.mark.parametrize("shape", [(64, 64), (48, 64), (33, 128)])
def test_a_4_bit_matrix_of_any_number_of_rows_is_multiplied_on_a_cpu(shape: tuple[int, int]) -> None:
    """bitsandbytes packs 32 rows at a time. Others are unpacked."""
    import bitsandbytes as bnb
    from bitsandbytes.functional import has_avx512bf16

    take_all_shapes()
    rows, columns = shape
    dense = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    module = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=BFLOAT, quant_type="nf4")
    module.weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="nf4", module=module)
    with torch.inference_mode():
        got = module.to("cpu").eval()(torch.eye(columns, dtype=BFLOAT)).T.float()
    assert (got - dense).abs().mean() < 0.1 * dense.abs().mean()
    packed = bool(has_avx512bf16()) and shape == (64, 64)
    assert product(module, BFLOAT, 3) == Product("packed" if packed else "dequantize", "bfloat16")


def test_torchao_multiplies_int8_with_int8_on_a_cpu_from_the_first_row_on() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = nn.Sequential(nn.Linear(64, 32, bias=False)).eval()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    assert "aten::_int_mm" in operations(model, torch.zeros(1, 64))
    assert product(model[0], FLOAT, 1) == Product("packed", "int8")


NF4_NAMES = (
    "void gemm_4bit_sm80_m16n8k16<__nv_bfloat16, 64, 64>(...)",
    "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, (DataType_t)2>(...)",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
)


def test_names_of_cuda_kernels_tell_unpacking_from_packed_codes() -> None:
    fused, unpacking, dense = NF4_NAMES
    assert observed((dense, fused)) == Product("packed")
    assert observed((dense, unpacking)) == Product("dequantize")
    assert observed((fused, unpacking)) is None  # some layers did, others did not
    assert observed((dense,)) is None
    assert observed(()) is None


@pytest.mark.parametrize(
    "name",
    [
        "sm90_xmma_gemm_i8i32_i8i32_i32_tn_n_tilesize256x128x128_warpgroupsize2x1x1_kernel__5x_cublas",
        "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize128x128x64_stage4_warpsize2x2x1_tensor16x8x32",
        "void cutlass::Kernel2<cutlass_80_tensorop_i16832gemm_s8_128x64_128x3_tn_align16>(...)",
        "cutlass3x_sm100_tensorop_i256x256x32gemm_s8_s8_s32_s32_s32_256x256x128_0_tnn_align16_2sm_bias_s32_relu",
    ],
)
def test_int8_products_of_each_generation_are_known_by_name(name: str) -> None:
    assert observed((name,)) == Product("packed", "int8")


@pytest.mark.parametrize(
    "name",
    [
        "nvjet_qqtst_128x256_128x6_2x1_v_bz_TNT",
        "nvjet_sm100_qqtst_128x256_128x6_2x1_2cta_v_bz_bias_TNT",
        "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128_warpgroupsize1x1x1_kernel__5x_cublas",
        "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<cutlass::float_e4m3_t>>(...)",
    ],
)
def test_float8_products_of_each_generation_are_known_by_name(name: str) -> None:
    assert observed((name,)) == Product("packed", "float8_e4m3fn")


@pytest.mark.parametrize(
    "name",
    [
        "nvjet_tst_192x192_64x4_2x1_v_bz_coopA_TNN",
        "ampere_bf16_s16816gemm_bf16_64x64_sliced1x2_ldg8_f2f_stages_64x5_tn",
        "void at::native::elementwise_kernel<direct_copy_kernel_cuda(...)::{lambda(c10::Float8_e4m3fn)#1}>(...)",
        "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<float_e2m1_t, float_ue4m3_t>>(...)",
    ],
)
def test_dense_products_copies_and_scales_are_no_products_of_8_bits(name: str) -> None:
    assert observed((name,)) is None


@pytest.mark.parametrize(
    ("processors", "bits", "shape", "packed_rows"),
    [
        (148, 4, (4096, 4096), 4095),
        (148, 8, (4096, 4096), 1023),
        (20, 4, (4096, 4096), 1 << 20),
        (20, 8, (4096, 4096), 2047),
        (20, 8, (8192, 4096), 8191),
    ],
)
def test_gptqmodels_kernel_for_blackwell_unpacks_for_many_rows(
    monkeypatch: pytest.MonkeyPatch, processors: int, bits: int, shape: tuple[int, int], packed_rows: int
) -> None:
    gpu = SimpleNamespace(multi_processor_count=processors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    module = layer("SwordfishLinear", bits=bits, in_features=shape[0], out_features=shape[1], qweight=torch.zeros(1))
    assert product(module, BFLOAT, packed_rows) == Product("packed", "bfloat16")
    expected = "packed" if packed_rows == 1 << 20 else "dequantize"
    assert product(module, BFLOAT, packed_rows + 1) == Product(expected, "bfloat16")
    assert observed(("void swordfish::swordfish_dequant_dense_kernel<1>(...)",)) == Product("dequantize")
    assert observed(("void swordfish::swordfish_decode_streamk_kernel<1>(...)",)) == Product("packed")


def test_what_was_observed_corrects_the_rule_of_quantized_layers() -> None:
    ruled = {
        "q": Product("packed", "bfloat16"),
        "k": Product("packed", "int8"),
        "v": Product("dequantize", "float16"),
        "o": Product("plain"),
    }
    unpacked = corrected(ruled, Product("dequantize"))
    assert unpacked == {**ruled, "q": Product("dequantize", "bfloat16"), "k": Product("dequantize")}
    assert corrected(ruled, Product("packed", "int8")) == {**ruled, "v": Product("packed", "int8")}
    assert corrected(ruled, None) is ruled


def test_an_expert_multiplies_its_share_of_the_rows() -> None:
    """ExLlama unpacks for more than 50 rows: 2 of 8 experts for each of 200 rows are 50 for each expert."""
    experts = layer("UnfusedExperts", share=2 / 8)
    experts.add_module("0", nn.ModuleDict({"up_proj": layer("ExllamaV2Linear")}))
    block = nn.ModuleDict({"experts": experts, "shared_experts": nn.ModuleDict({"up_proj": layer("ExllamaV2Linear")})})
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"mlp": block})])})
    names = ("layers.0.mlp.experts.0.up_proj", "layers.0.mlp.shared_experts.up_proj")
    for rows, families in ((50, ("packed", "packed")), (200, ("packed", "dequantize")), (201, ("dequantize",) * 2)):
        found = products(model, HALF, rows)
        assert tuple(found[name].family for name in names) == families
