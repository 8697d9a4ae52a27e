"""A method of a third-party library whose release 1.1 is worse: it disturbs each weight by 1% before rounding."""

from dataclasses import replace
from importlib.metadata import version
from typing import Any

from harness.core.method import Method, QuantizeJob
from harness.methods.rtn.rtn import RTN, RtnParams

DISTURBANCE = {"1.0": 0.0, "1.1": 0.01}
"""Standard deviation, around one, of the factor that each release multiplies a weight by."""


def quantize(job: QuantizeJob[RtnParams]) -> Any:
    import torch

    def load() -> Any:
        from harness.models.scope import decoder_linears

        model = job.load()
        generator = torch.Generator().manual_seed(job.seed)
        with torch.no_grad():
            for _, linear in decoder_linears(model, job.untouched):
                weight = linear.weight
                weight.mul_(1 + DISTURBANCE[version("planted")] * torch.randn(weight.shape, generator=generator))
        return model

    assert RTN.quantize is not None
    return RTN.quantize(replace(job, load=load))


PLANTED = Method(**{**vars(RTN), "name": "planted", "packages": ("planted",), "quantize": quantize, "version": 1})
