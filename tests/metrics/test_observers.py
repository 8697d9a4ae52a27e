"""Perplexity and divergence against plain computations that share no code with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.contracts import Chunk, LoadedModel, LoadRequest, Windows
from harness.engines.transformers import load
from harness.errors import InvalidRunError
from harness.execution import reference as references
from harness.execution.forward import CHUNK_TOKENS, observe
from harness.metrics.divergence import Divergence
from harness.metrics.perplexity import Likelihood
from harness.recipe import Text
from harness.record import Measurement
from harness.spec import PerplexityWorkload
from harness.text.sources import resolve
from harness.text.windows import cut


def plain(tokens: list[list[int]]) -> Windows:
    return Windows(tokens, [1] * len(tokens), [str(index) for index in range(len(tokens))], {})


def loaded(folder: Path) -> LoadedModel:
    model = load(LoadRequest(folder, "float32", "cpu"))
    model.probe()
    return model


def published_gptq_perplexity(folder: Path, text: str, context: int, windows: int) -> float:
    """The loop of GPTQ's llama.py: mean cross-entropy of each window, times its length, over all lengths."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt").input_ids
    losses = []
    with torch.no_grad():
        for i in range(windows):
            batch = ids[:, i * context : (i + 1) * context]
            logits = model(batch).logits
            loss = torch.nn.CrossEntropyLoss()(logits[0, :-1], batch[0, 1:])
            losses.append(float(loss) * context)
    return math.exp(sum(losses) / (windows * context))


def harness_perplexity(folder: Path, path: Path, context: int, windows: int) -> float:
    model = loaded(folder)
    text = resolve(Text(file=str(path)), path.parent)
    cut_text = cut_windows(text, context, windows, model.tokenizer)
    likelihood = Likelihood(cut_text)
    with torch.inference_mode():
        observe(model, cut_text, [likelihood], None)
    (nll,) = likelihood.finish()
    return math.exp(sum(v * w for v, w in zip(nll.values, nll.weights, strict=True)) / sum(nll.weights))


def cut_windows(text, context: int, windows: int, tokenizer) -> Windows:
    return cut(PerplexityWorkload(text, "gptq", context, windows), tokenizer)


def hub_text(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "\n\n".join("" if line.isspace() else line for line in lines)


def test_perplexity_of_the_tiny_model_is_the_published_loops(tiny: Path) -> None:
    demo = Path(__file__).parents[2] / "harness" / "text" / "data" / "demo.txt"
    expected = published_gptq_perplexity(tiny, hub_text(demo), 128, 8)
    assert harness_perplexity(tiny, demo, 128, 8) == pytest.approx(expected, rel=1e-4)
    assert expected < 60  # a trained model: guessing among 512 tokens would be 512


def test_perplexity_of_a_real_trained_model_is_the_published_loops(shared: Callable[[str], Path]) -> None:
    folder, text = shared("models/tinystories-656k-fp32"), shared("data/wikitext2/wiki.test.raw")
    expected = published_gptq_perplexity(folder, hub_text(text), 256, 16)
    assert harness_perplexity(folder, text, 256, 16) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny model, a disturbed copy of it, windows, and the tiny model's reference."""
    base = loaded(tiny)
    raw = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in raw.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("disturbed")
    raw.save_pretrained(folder)
    other = loaded(folder)
    windows = cut_windows(resolve(Text(name="demo"), Path()), CHUNK_TOKENS + 50, 3, base.tokenizer)
    kept = tmp_path_factory.mktemp("reference")
    with torch.inference_mode():
        references.write(base, windows, kept)
    return base, other, windows, kept


def diverge(model, windows: Windows, kept: Path) -> dict[str, Measurement]:
    divergence = Divergence(windows)
    with torch.inference_mode():
        observe(model, windows, [divergence], references.Reference(kept, "cpu"))
    return {m.metric: m for m in divergence.finish()}


def test_divergence_is_exact_and_from_the_baseline_to_the_variant(pair) -> None:
    base, other, windows, kept = pair
    found = diverge(other, windows, kept)
    forward, backward, agree = [], [], []
    with torch.inference_mode():
        for tokens in windows.tokens:
            p = base.logits(torch.tensor([tokens]))[0, :-1].double().log_softmax(-1)
            q = other.logits(torch.tensor([tokens]))[0, :-1].double().log_softmax(-1)
            forward += (p.exp() * (p - q)).sum(-1).tolist()
            backward += (q.exp() * (q - p)).sum(-1).tolist()
            agree += (p.argmax(-1) == q.argmax(-1)).double().tolist()
    assert found["kl"].values == pytest.approx(forward, rel=1e-3, abs=1e-6)
    assert sum(found["kl"].values) != pytest.approx(sum(backward), rel=1e-2)
    assert list(found["top1_agreement"].values) == agree
    assert 0 < sum(agree) < len(agree)


def test_items_name_the_scored_token_and_cluster_by_window(pair) -> None:
    _, other, windows, kept = pair
    kl = diverge(other, windows, kept)["kl"]
    per_window = CHUNK_TOKENS + 49
    assert kl.item_ids[:2] == ("0:1", "0:2")
    assert kl.item_ids[per_window - 1 : per_window + 1] == (f"0:{per_window}", "1:1")
    assert kl.cluster_ids.count("2") == per_window


def test_a_reference_of_whole_logits_gives_the_same_divergence(pair, tiny: Path, tmp_path: Path) -> None:
    _, other, windows, kept = pair
    whole = loaded(tiny)
    whole.factored = False
    with torch.inference_mode():
        references.write(whole, windows, tmp_path)
    assert not (tmp_path / references.HEAD).exists()
    assert diverge(other, windows, tmp_path)["kl"].values == pytest.approx(
        diverge(other, windows, kept)["kl"].values, abs=1e-6
    )


def test_a_damaged_reference_is_not_read(pair, tmp_path: Path) -> None:
    import shutil

    from harness.errors import HarnessError

    _, other, windows, kept = pair
    copy = shutil.copytree(kept, tmp_path / "copy")
    path = copy / "window-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(HarnessError, match="damaged"):
        diverge(other, windows, copy)


def test_other_tokens_than_the_references_are_refused(pair) -> None:
    _, _, windows, kept = pair
    others = replace(windows, protocol={**windows.protocol, "tokens_sha256": "0"})
    with pytest.raises(InvalidRunError, match="tokenizers are not the same"):
        references.Reference(kept, "cpu").check(others)


def test_a_batch_of_windows_scores_as_they_do_alone(pair) -> None:
    base, _, windows, _ = pair
    alone, together = Likelihood(windows), Likelihood(windows)
    with torch.inference_mode():
        observe(base, windows, [alone], None)
        observe(base, windows, [together], None, batch=2)
    assert together.finish()[0].values == pytest.approx(alone.finish()[0].values, rel=1e-5)


def test_logits_that_are_not_finite_make_the_run_invalid() -> None:
    likelihood = Likelihood(plain([[1, 2]] * 4))
    chunk = Chunk(3, 1, torch.tensor([0]), torch.full((1, 4), math.nan), None)
    with pytest.raises(InvalidRunError, match="window 3"):
        likelihood.observe(chunk)


def test_a_certain_disagreement_has_a_known_divergence() -> None:
    """KL of (1/2, 1/2) from (1/4, 3/4) is ½·ln 2 + ½·ln(2/3)."""
    divergence = Divergence(plain([[0, 1]]))
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    divergence.observe(Chunk(0, 1, torch.tensor([1]), q, p))
    assert divergence.finish()[0].values[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)
