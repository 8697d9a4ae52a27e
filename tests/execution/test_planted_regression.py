"""Weights that are disturbed by one per cent: the alarm finds it on a real model, and nothing where nothing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_specs import run_spec

from harness.analysis.regression.track import track
from harness.core.engine import LoadRequest
from harness.core.metric import Windows
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.workload import PerplexityWorkload
from harness.engines.transformers.engine import TransformersModel, load
from harness.execution.forward import observe
from harness.execution.reference import Reference, write
from harness.plugins import metric
from harness.recipe import Text
from harness.text.sources import resolve
from harness.text.windows import cut

pytestmark = pytest.mark.heavy

WORKLOAD = PerplexityWorkload(resolve(Text(name="demo"), Path()), "gptq", 128, 16)
GROUP, LEVELS = 32, 127


class Measured:
    """An 8-bit variant of the tiny model beside the unquantized one; ``disturbed`` says by how much each weight."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        self.tiny = tiny
        model = load(LoadRequest(tiny, "float32", "cpu"))
        self.windows: Windows = cut(WORKLOAD, model.tokenizer)
        with torch.inference_mode():
            write(model, self.windows, folder)
        self.reference = Reference(folder, "cpu")

    def record(self, session: str, disturbed: float = 0.0) -> RunRecord:
        ref = ModelRef("tiny", "tiny", "0", "directory", str(self.tiny), "float32")
        none, method = MethodRef("none", 1, {}, "none", "none"), MethodRef("rtn", 1, {}, "rtn 8-bit", "on_load")
        spec = run_spec("quality", "planted", ref, method, none, perplexity=WORKLOAD)
        return RunRecord(spec, Outcome("ok", measurements=self._measure(disturbed)), session, 1, session, 1.0)

    def _measure(self, disturbed: float) -> tuple[Measurement, ...]:
        model = load(LoadRequest(self.tiny, "float32", "cpu"))
        _quantize(model, disturbed)
        observers = [metric(name).make(self.windows) for name in ("perplexity", "divergence")]
        with torch.inference_mode():
            observe(model, self.windows, observers, self.reference)
        return tuple(measured for observer in observers for measured in observer.finish())


def _quantize(model: TransformersModel, disturbed: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model._model.named_parameters():
            if name.endswith("proj.weight"):
                groups = weight.reshape(-1, GROUP)
                scale = groups.abs().amax(dim=1, keepdim=True) / LEVELS
                rounded = ((groups / scale).round() * scale).reshape(weight.shape)
                weight.copy_(rounded * (1 + disturbed * torch.randn(weight.shape, generator=generator)))


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return Measured(tiny, tmp_path_factory.mktemp("reference"))


def test_one_per_cent_is_found_and_the_same_again_is_not(measured: Measured) -> None:
    before = measured.record("s1")
    found = track([before], [measured.record("s2", disturbed=0.01)], {"kl": 1e-4})
    verdicts = {each.metric: each.verdict for each in found.findings}
    assert found.outcome == "regressed"
    assert verdicts["kl"] == "regressed"
    again = track([before], [replace(measured.record("s3"), session="s3")], {"kl": 1e-4, "perplexity": 1e-3})
    assert again.outcome == "passed"
