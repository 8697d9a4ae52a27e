"""The evidence on a baseline: how its text was cut, and what BOS does, beside independent computations."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_specs import changed, run_spec
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from harness.analysis.tradeoff import tradeoff
from harness.cli.app import app
from harness.core.capability import Logits
from harness.core.label import Fact
from harness.core.metric import Windows
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.workload import PerplexityWorkload
from harness.execution.checks.plausibility import PROBE_TOKENS, SETTLING_TOKENS, plausibility
from harness.execution.context import Context
from harness.execution.jobs import quality
from harness.figures.derived.plausibility import implausible
from harness.recipe import Text
from harness.report import write_report
from harness.storage.cache import Cache
from harness.text.sources import resolve
from harness.text.windows import cut

pytestmark = pytest.mark.heavy

NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
EVIDENCE = {"vocabulary_size", "tokens_per_character", "latin_letter_share", "bos_gain"}


@pytest.fixture
def context(tiny: Path, tmp_path: Path) -> Context:
    model = ModelRef("tiny", "tiny", "0", "directory", str(tiny), "float32")
    return Context(run_spec("quality", "plausible", model, NONE, NONE), Cache(tmp_path), str)


def demo(protocol: str, context: int, windows: int | None, **settings: Any) -> PerplexityWorkload:
    return PerplexityWorkload(resolve(Text(name="demo"), Path()), protocol, context, windows, **settings)


def found(context: Context) -> dict[str, Measurement]:
    return {each.metric: each for each in context.measurements if each.metric in EVIDENCE}


def test_the_evidence_is_that_of_independent_computations(context: Context, tiny: Path) -> None:
    """Characters by the offsets of the tokenizers library; the gain by two plain passes of transformers."""
    model = context.load(Logits)
    windows = cut(demo("gptq", 128, 5), model.tokenizer)
    plausibility(context, model, windows)
    measured = found(context)
    assert measured["vocabulary_size"].values == (512,)

    lines = Path(str(demo("gptq", 1, 1).text.path)).read_text(encoding="utf-8").splitlines(keepends=True)
    text = "\n\n".join(line if line.strip() else "" for line in lines)
    coded = Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text)
    scored = [place for place in range(5 * 128) if place % 128]
    characters = sum(coded.offsets[place][1] - coded.offsets[place][0] for place in scored)
    assert measured["tokens_per_character"].values[0] == pytest.approx(len(scored) / characters, rel=0.01)
    assert measured["latin_letter_share"].values == (1.0,)

    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = coded.ids[2 * 128 : 3 * 128]
    with torch.inference_mode():
        without = plain(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        beside = plain(input_ids=torch.tensor([[0, *ids]])).logits[0, 1:-1].double().log_softmax(-1)
    targets = torch.tensor(ids[1:])[:, None]
    gains = (beside.gather(1, targets) - without.gather(1, targets))[SETTLING_TOKENS - 1 :, 0]
    assert measured["bos_gain"].values == pytest.approx(gains.tolist(), abs=1e-5)
    assert measured["bos_gain"].protocol["window"] == 2


@pytest.mark.parametrize(
    ("workload", "probed"),
    [
        (demo("gptq", 128, 5), True),  # BOS once, and so not in the middle
        (demo("gptq", 128, 1), False),
        (demo("gptq", 128, 1, bos="never"), True),
        (demo("llama.cpp", 128, 4), False),
        (demo("llama.cpp", 128, 4, bos="never"), True),
        (demo("lm-eval", 128, 64), True),  # later windows of a long document begin with its own tokens
        (demo("sliding", 128, 8, stride=64), True),
        (demo("gptq", 2 * SETTLING_TOKENS, 5), False),
        (demo("gptq", 512, 3), True),  # as long as the model reads
    ],
)
def test_bos_is_probed_where_the_window_lacks_it(context: Context, workload: PerplexityWorkload, probed: bool) -> None:
    model = context.load(Logits)
    plausibility(context, model, cut(workload, model.tokenizer))
    assert ("bos_gain" in found(context)) == probed
    if probed:
        count = min(PROBE_TOKENS, workload.context) - SETTLING_TOKENS
        assert len(found(context)["bos_gain"].values) == count


class NeedsBos:
    """Behind BOS the next token of the ring 0, 1, … 8 has nine chances in ten; else all ten tokens are as likely."""

    vocabulary, device, factored = 10, "cpu", False
    tokenizer: Any = None

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        right = torch.nn.functional.one_hot((tokens + 1) % 9, self.vocabulary).bool()
        sure = torch.where(right, math.log(0.9), math.log(0.1 / 9))
        return torch.where((tokens[:, :1] == 9)[..., None], sure, torch.zeros_like(sure))


class Ring:
    bos_token_id = 9

    def decode(self, ids: list[int], **settings: Any) -> str:
        return "".join("abcdefgh"[token % 8] for token in ids)


def test_a_model_that_needs_bos(context: Context) -> None:
    """Without it a token costs ln 10, with it -ln 0.9: nine times as likely."""
    model = NeedsBos()
    model.tokenizer = Ring()
    tokens = [[(start + place) % 9 for place in range(64)] for start in range(3)]
    plausibility(context, model, Windows(tokens, [1] * 3, ["0"] * 3, {"context": 64}))  # type: ignore[arg-type]
    assert found(context)["bos_gain"].values == pytest.approx([math.log(9)] * (64 - SETTLING_TOKENS), abs=1e-6)


def test_a_bos_that_the_model_does_not_know_costs_no_figures(context: Context) -> None:
    """transformers appends a ``bos_token`` that the vocabulary lacks, beyond the last embedding."""
    model = context.load(Logits)
    windows = cut(PerplexityWorkload(resolve(Text(name="demo"), Path()), "gptq", 128, 2), model.tokenizer)
    model.tokenizer.add_special_tokens({"bos_token": "<|startoftext|>"})
    assert model.tokenizer.bos_token_id >= model.vocabulary
    plausibility(context, model, windows)
    assert "bos_gain" not in {measured.metric for measured in context.measurements}
    assert {"vocabulary_size", "tokens_per_character"} <= {measured.metric for measured in context.measurements}


def test_letters_that_are_not_latin_are_seen(context: Context) -> None:
    model = NeedsBos()
    model.tokenizer = Ring()
    model.tokenizer.decode = lambda ids, **settings: "Ω1 ж"[: len(ids)] + "ab"
    plausibility(context, model, Windows([[1, 2, 3, 4, 5]], [1], ["0"], {"context": 5}))  # type: ignore[arg-type]
    assert found(context)["latin_letter_share"].values == (0.5,)
    assert found(context)["tokens_per_character"].values == (4 / 6,)


def test_a_tokenizer_that_cannot_decode_costs_no_figures(context: Context) -> None:
    model = NeedsBos()
    model.tokenizer = object()
    plausibility(context, model, Windows([[1, 2, 3]], [1], ["0"], {"context": 3}))  # type: ignore[arg-type]
    assert found(context).keys() == {"vocabulary_size"}
    reason = "'object' object has no attribute 'decode'"
    assert context.facts == [Fact("plausibility_not_measured", {"reason": reason})]


@pytest.mark.parametrize(
    ("trained", "text", "expected"),
    [
        ("stories260K-hf", "tinystories/sample.txt", []),
        ("stories260K-hf", None, []),
        ("tinystories-656k-fp32", "tinystories/sample.txt", ["bos"]),  # its BOS means that a story begins
        ("tinystories-656k-fp32", "wikitext2/wiki.test.raw", ["perplexity"]),  # of which it has seen nothing
    ],
)
def test_trained_models_and_texts(
    context: Context, shared: Any, trained: str, text: str | None, expected: list[str]
) -> None:
    """Two Llamas that were trained on stories behind BOS, where the windows lack it."""
    model = replace(context.spec.model, path=str(shared(f"models/{trained}")))
    scored = Text(file=str(shared(f"data/{text}"))) if text else Text(name="demo")
    workload = PerplexityWorkload(resolve(scored, Path("/")), "gptq", 256, 8)
    spec = changed(context.spec, model=model, perplexity=workload, memory=False)
    working = Context(spec, context.cache, str)
    quality.run(spec.job, working, Path())
    assert found(working).keys() == EVIDENCE
    outcome = Outcome("ok", measurements=working.findings())
    doubts = implausible(model, RunRecord(spec, outcome, "s", 1, "2026-11-28T00:00:00+00:00", 1.0))
    assert [doubt.code for doubt in doubts] == expected


@pytest.fixture(scope="module")
def untrained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the tiny model's tokenizer and weights drawn at random."""
    folder = tmp_path_factory.mktemp("untrained")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny), dtype=torch.float32).save_pretrained(folder)
    return folder


def test_an_implausible_baseline_is_told_wherever_its_figures_stand(
    sweeps: Any, untrained: Path, tmp_path: Path
) -> None:
    records = sweeps.run(
        {
            "models": [{"id": str(untrained), "label": "untrained"}],
            "methods": ["none", {"rtn": {"bits": 8, "group_size": 32}}],
            "measure": {"perplexity": {"context": 64, "windows": 4}, "memory": {}},
        }
    )
    assert {record.status for record in records} == {"ok"}
    evidence = [{each.metric for each in record.outcome.measurements} & EVIDENCE for record in records]
    assert [bool(each) for each in evidence] == [record.spec.is_baseline for record in records]
    (table,) = tradeoff(records)
    (why,) = table.implausible
    assert why.code == "guessing"
    written = write_report(records, tmp_path / "report", ("html", "md", "csv", "model-card", "github"))
    files = {path.name: path.read_text(encoding="utf-8") for path in written}
    assert len(files) == 6
    for name, text in files.items():
        assert "implausible baseline: its perplexity is" in text, name
        assert "Closest to the baseline" not in text, name
    assert "no quality figure relative to this baseline can be trusted" in files["report.html"]
    assert ",guessing," in files["report.csv"]

    folder = str(sweeps.store.root / "sweep")
    for output in ("table", "markdown"):
        told = CliRunner().invoke(app, ["recommend", folder, "--format", output])
        assert told.exit_code == 4
        assert "not known; no quality figure relative to this baseline can be trusted" in " ".join(told.stdout.split())
        assert "⚠ implausible baseline" in told.stdout
    told = CliRunner().invoke(app, ["recommend", folder, "--format", "json", "--max-kl", "0.1"])
    assert told.exit_code == 4
    line = json.loads(told.stdout)
    assert (line["pick"], line["holds"]) == (None, False)
    assert line["implausible_baseline"][0]["code"] == "guessing"
    assert CliRunner().invoke(app, ["recommend", folder, "--max-size", "1GB"]).exit_code == 0

    compared = CliRunner().invoke(app, ["compare", folder, folder])
    assert "BASE: untrained × none × transformers: quality" in compared.stdout
    assert "implausible baseline: its perplexity is" in " ".join(compared.stdout.split())
