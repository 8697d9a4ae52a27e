"""llm-compressor's AWQ (Lin et al., arXiv:2306.00978): scales salient channels up before weights are rounded.

For each group of layers with a common input, the scales are found by a grid search that runs the block over all
calibration text at every point. The inverse scales move into the preceding layer, so the result is equivalent. The
library has such groups for dense models and some mixtures, for others it takes those of dense ones. Those of mixtures
that are known here are ``harness.models.balance``'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.core.layers import is_layer
from harness.core.method import GroupSize, Method, MethodParams, Needs, QuantizeJob
from harness.methods.llmcompressor import driver as llmcompressor
from harness.models.balance import balances
from harness.models.scope import TRIED


class LlmcAwqParams(MethodParams):
    """``group_size`` is the number of input columns that share a scale; ``channel`` means one scale per output row.

    ``duo_scaling`` computes the scales from the magnitudes of weights as well as activations. ``grid`` is the number of
    points of the search; its time is proportional to that.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize | Literal["channel"] = 128
    symmetric: bool = False
    duo_scaling: bool = True
    grid: Annotated[int, Field(ge=3, le=1000)] = 20


def quantize(job: QuantizeJob[LlmcAwqParams]) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    params = job.params
    groups = llmcompressor.groups(llmcompressor.integers(params.bits, params.group_size, params.symmetric))
    unscaled: list[str] = []
    scale = _modifier(unscaled)(duo_scaling=params.duo_scaling, n_grid=params.grid)
    round_ = QuantizationModifier(config_groups=groups, ignore=list(job.untouched))
    llmcompressor.quantize(job, [scale, round_], calibrated=True)
    job.rounded(unscaled)


def _modifier(unscaled: list[str]) -> Any:
    """The library's modifier, with the groups of mixtures that are known here.

    The members of a group for which it found no scales are added to ``unscaled``: it scales nothing that its
    calibration does not reach, or whose block gives NaN. It keeps the errors of each search that it makes.
    """
    from llmcompressor.modifiers.transform.awq import AWQModifier

    class BalancedAWQModifier(AWQModifier):  # type: ignore[misc]
        def _set_resolved_mappings(self, model: Any) -> None:
            if model.config.model_type in TRIED:
                self._resolved_mappings = list(_groups(model))
            else:
                super()._set_resolved_mappings(model)

        def on_finalize(self, state: Any, **options: Any) -> bool:
            searched = {found["layer_name"] for found in self._error_metrics}
            for group in self._resolved_mappings:
                if group.smooth_name not in searched:
                    unscaled.extend(group.balance_names)
            return bool(super().on_finalize(state, **options))

    return BalancedAWQModifier


def _groups(model: Any) -> Iterator[Any]:
    """Groups with a layer to quantize. A router comes first: the library takes the inputs of the first member."""
    from llmcompressor.modifiers.transform.awq.mappings import ResolvedMapping

    for name, layer in model.named_modules():
        for balance in balances(layer, model.config.model_type) if is_layer(name) else ():
            members = [each for each in (balance.router, *balance.readers) if each]
            block = balance.block or balance.readers[0]
            layers = [layer.get_submodule(each) for each in members]
            if any(hasattr(each, "quantization_scheme") for each in layers):
                yield ResolvedMapping(
                    f"{name}.{balance.source}",
                    layer.get_submodule(balance.source),
                    layers,
                    [f"{name}.{each}" for each in members],
                    layer.get_submodule(block),
                    f"{name}.{block}",
                )


AWQ = Method(
    name="llmc-awq",
    version=2,  # 1 changed the routing of mixtral and gpt_oss, and what the experts of gpt_oss compute
    summary="llm-compressor AWQ in 8, 4, 3 or 2 bits; dense when run",
    params=LlmcAwqParams,
    multimodal=frozenset(),
    packages=llmcompressor.PACKAGES,
    extra=llmcompressor.EXTRA,
    enable=llmcompressor.enable,
    calibrated=lambda params: True,
    passes=lambda params, samples: 30.0,  # it tries 20 scales for each layer
    quantize=quantize,
    quantize_parts=llmcompressor.from_disk(quantize),
    parts_peak=llmcompressor.awq_peak,
    streams=True,
    quantizes_experts=TRIED,
    kernel="plain",
    needs=lambda params: Needs(input_divisor=params.group_size if isinstance(params.group_size, int) else None),
    bits_per_weight=lambda params, plain_bits, width: llmcompressor.integer_bits(
        params.bits, params.group_size, params.symmetric, plain_bits, width
    ),
    codes=llmcompressor.integer_codes,
    beside=llmcompressor.beside_integers,
    loaded="dense",
)
