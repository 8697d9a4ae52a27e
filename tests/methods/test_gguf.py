"""llama.cpp's quantization, as far as it can be told without llama.cpp: its arithmetic and where it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from harness.api.plan import plan
from harness.core.run import RunSpec
from harness.core.site import Machine
from harness.engines.llamacpp.engine import LLAMACPP
from harness.errors import RecipeError
from harness.methods.llamacpp.gguf import BLOCKS, FALLBACK, GGUF, MIXES, GgufParams
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe
from harness.stacks import MANIFEST, Stacks


@pytest.fixture
def make(sweeps, tiny: Path, tmp_path: Path):
    def make(**changes: object) -> tuple[PlannedRun, ...]:
        content: dict[str, object] = {
            "models": [{"id": str(tiny), "label": "tiny"}],
            "methods": ["none", {"rtn": {"group_size": 32}}, {"gguf": {"type": "Q8_0"}}],
            "engines": ["transformers", "llamacpp"],
            "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}, "divergence": {}},
        }
        recipe = load_recipe(sweeps.recipe({**content, **changes}))
        return plan(recipe, Machine("cpu", "a test machine"), Stacks(tmp_path / "stacks"))

    return make


@pytest.fixture
def pretended_stack(tmp_path: Path) -> None:
    """A stack that planning takes for made: it reads the manifest, and runs nothing."""
    folder = Stacks(tmp_path / "stacks").find("llamacpp").folder
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    made = {"versions": dict.fromkeys(LLAMACPP.packages, "1"), "compiler_flags": []}
    (folder / MANIFEST).write_text(json.dumps(made), encoding="utf-8")


def test_blocks_are_those_of_the_library() -> None:
    for name, block in BLOCKS.items():
        assert block == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize(
    ("kind", "width", "bits"),
    [("Q8_0", 64, 8.5), ("Q4_0", 576, 4.5), ("Q6_K", 512, 6.5625), ("Q6_K", 576, 8.5), ("Q4_0", 40, 16.0)],
)
def test_bits_are_those_of_the_type_that_fits_the_width(kind: str, width: int, bits: float) -> None:
    assert GGUF.bits_per_weight(GgufParams(type=kind), 32.0, width) == bits


def test_mixes_are_of_known_types_and_whole() -> None:
    for mix in MIXES.values():
        assert sum(mix.values()) == pytest.approx(1)
        assert mix.keys() <= FALLBACK.keys()


def of(runs: tuple[PlannedRun, ...], kind: str) -> list[RunSpec]:
    return [run.spec for run in runs if run.spec.kind == kind]


def test_each_variant_runs_on_the_engines_that_take_it(make: Any) -> None:
    quality = {(spec.method.name, spec.engine, spec.stack) for spec in of(make(), "quality")}
    assert quality == {
        ("none", "transformers", "main"),
        ("rtn", "transformers", "main"),
        ("none", "llamacpp", "llamacpp"),
        ("gguf", "llamacpp", "llamacpp"),
    }


@pytest.mark.usefixtures("pretended_stack")
def test_engines_share_one_reference_and_the_unquantized_model_is_converted(make: Any) -> None:
    runs = make()
    (reference,) = of(runs, "reference")
    assert (reference.engine, reference.stack) == ("transformers", "main")
    assert {spec.needs["reference"] for spec in of(runs, "quality")} == {reference.run_id}
    (convert,) = of(runs, "convert")
    (probe,) = of(runs, "probe")
    assert (convert.stack, convert.needs["probe"]) == ("llamacpp", probe.run_id)
    converted = [spec for spec in of(runs, "quality") if spec.needs.get("convert") == convert.run_id]
    assert [(spec.method.name, spec.engine) for spec in converted] == [("none", "llamacpp")]
    assert len({run.spec.run_id for run in runs}) == len(runs)


def test_without_its_stack_the_engine_alone_is_unsupported(make: Any) -> None:
    for run in make():
        if run.spec.stack == "llamacpp":
            assert run.unsupported == (
                "stack 'llamacpp' is missing: qharness stack create llamacpp, or run --create-stacks"
            )
        elif run.spec.kind in ("reference", "quality"):
            assert run.unsupported is None


def test_a_method_that_no_engine_of_the_recipe_runs_is_refused(make: Any) -> None:
    with pytest.raises(RecipeError, match=r"gguf type=Q8_0 runs on llamacpp; name it under 'engines'"):
        make(engines=["transformers"])
