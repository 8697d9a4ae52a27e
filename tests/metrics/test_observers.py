"""Perplexity and divergence against plain computations that share no code with them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.core.capability import Factored, Logits
from harness.core.column import ArrayColumn
from harness.core.engine import LoadRequest
from harness.core.metric import LOGITS_BYTES, Chunk, Windows
from harness.core.record import Measurement
from harness.core.workload import PerplexityWorkload
from harness.engines.transformers.engine import load
from harness.errors import InvalidRunError
from harness.execution import forward
from harness.execution import reference as references
from harness.execution.forward import BLOCK_BYTES, observe
from harness.metrics.divergence import DivergenceObserver
from harness.metrics.perplexity import Likelihood
from harness.numerics.prediction import predict
from harness.recipe import Text
from harness.text.sources import resolve
from harness.text.windows import cut

pytestmark = pytest.mark.heavy

STRETCH, BLOCK = 128, 50
"""Rows at a time of the tiny model's 512 logits, so few that a window holds several of both."""


@pytest.fixture(autouse=True)
def little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "LOGITS_BYTES", 4 * 512 * STRETCH)
    monkeypatch.setattr(forward, "BLOCK_BYTES", {"cpu": 4 * 512 * BLOCK})


def plain(tokens: list[list[int]]) -> Windows:
    return Windows(tokens, [1] * len(tokens), [str(index) for index in range(len(tokens))], {})


def loaded(folder: Path) -> Logits:
    model = load(LoadRequest(folder, "float32", "cpu"))
    model.probe_head()
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


def disturbed(folder: Path, share: float, out: Path) -> Path:
    """A copy of a model, each of its weights moved by about that share of it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + share * torch.randn_like(parameter))
    model.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny model, a disturbed copy of it, windows, and the tiny model's reference."""
    base = loaded(tiny)
    other = loaded(disturbed(tiny, 0.2, tmp_path_factory.mktemp("disturbed")))
    windows = cut_windows(resolve(Text(name="demo"), Path()), STRETCH + 50, 3, base.tokenizer)
    kept = tmp_path_factory.mktemp("reference")
    with torch.inference_mode():
        references.write(base, windows, kept)
    return base, other, windows, kept


def diverge(model, windows: Windows, kept: Path) -> dict[str, Measurement]:
    divergence = DivergenceObserver(windows)
    with torch.inference_mode():
        observe(model, windows, [divergence], references.Reference(kept, "cpu"))
    return {m.metric: m for m in divergence.finish()}


def log_probabilities(model: Logits, windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the model's own logits in float64, and the true tokens: nothing of the harness but the loading."""
    with torch.inference_mode():
        rows = [model.logits(torch.tensor([tokens]))[0, :-1].double().log_softmax(-1) for tokens in windows.tokens]
    return torch.cat(rows), torch.tensor([token for tokens in windows.tokens for token in tokens[1:]])


def agreement(one: torch.Tensor, other: torch.Tensor, count: int) -> list[float]:
    """The part of each row's ``count`` highest that both have."""
    sets = [[set(row) for row in each.sort(descending=True).indices[:, :count].tolist()] for each in (one, other)]
    return [len(a & b) / count for a, b in zip(*sets, strict=True)]


def test_quantities_are_columns_and_share_what_names_their_values(pair) -> None:
    _, other, windows, kept = pair
    found = list(diverge(other, windows, kept).values())
    assert {type(each) for m in found for each in (m.values, m.item_ids, m.cluster_ids)} == {ArrayColumn}
    assert len({id(m.item_ids) for m in found}) == len({id(m.cluster_ids) for m in found}) == 1
    assert found[0].item_ids[0] == "0:1"


def test_divergence_is_exact(pair) -> None:
    base, other, windows, kept = pair
    found = diverge(other, windows, kept)
    p, true = log_probabilities(base, windows)
    q, _ = log_probabilities(other, windows)
    picked = true.unsqueeze(1)
    expected = {
        "kl": (p.exp() * (p - q)).sum(-1),
        "kl_reverse": (q.exp() * (q - p)).sum(-1),
        "delta_p": (q.exp() - p.exp()).gather(1, picked).squeeze(1),
        "baseline_confidence": p.exp().amax(-1),
    }
    for name, values in expected.items():
        assert found[name].values == pytest.approx(values.tolist(), rel=0, abs=1e-6), name
    assert list(found["top1_agreement"].values) == agreement(p, q, 1)
    assert list(found["top5_agreement"].values) == agreement(p, q, 5)
    assert 0 < sum(agreement(p, q, 1)) < sum(agreement(p, q, 5)) < len(true)
    assert sum(found["kl"].values) != pytest.approx(sum(found["kl_reverse"].values), rel=1e-2)
    assert {name: (m.unit, m.direction) for name, m in found.items()} == {
        "kl": ("nat", "lower"),
        "kl_reverse": ("nat", "lower"),
        "top1_agreement": ("fraction", "higher"),
        "top5_agreement": ("fraction", "higher"),
        "delta_p": ("probability", "neither"),
        "baseline_confidence": ("probability", "neither"),
    }


def test_divergence_of_a_real_trained_model_is_exact(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """Its weights hardly moved: so small a divergence that sums in float32 could lose it."""
    base = loaded(shared("models/tinystories-656k-fp32"))
    other = loaded(disturbed(shared("models/tinystories-656k-fp32"), 0.002, tmp_path / "disturbed"))
    windows = cut_windows(resolve(Text(name="demo"), Path()), 256, 4, base.tokenizer)
    with torch.inference_mode():
        references.write(base, windows, tmp_path)
    found = diverge(other, windows, tmp_path)
    p, _ = log_probabilities(base, windows)
    q, _ = log_probabilities(other, windows)
    forward, backward = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)
    assert 0 < forward.mean() < 1e-3
    assert found["kl"].values == pytest.approx(forward.tolist(), rel=0, abs=1e-6)
    assert found["kl_reverse"].values == pytest.approx(backward.tolist(), rel=0, abs=1e-6)
    assert sum(found["kl"].values) / 1020 == pytest.approx(float(forward.mean()), rel=1e-3)


def test_items_name_the_scored_token_and_cluster_by_window(pair) -> None:
    _, other, windows, kept = pair
    found = diverge(other, windows, kept)
    per_window = STRETCH + 49
    kl = found["kl"]
    assert kl.item_ids[:2] == ("0:1", "0:2")
    assert kl.item_ids[per_window - 1 : per_window + 1] == (f"0:{per_window}", "1:1")
    assert kl.cluster_ids.count("2") == per_window
    assert {m.item_ids for m in found.values()} == {kl.item_ids}


@pytest.mark.parametrize(("documents", "clusters"), [(["a", "b", "b"], ["a", "b"]), (["a", "a", "a"], ["0", "1", "2"])])
def test_windows_of_one_document_are_one_cluster_unless_there_is_but_one(pair, documents, clusters) -> None:
    _, other, windows, kept = pair
    assert (
        list(dict.fromkeys(diverge(other, replace(windows, documents=documents), kept)["kl"].cluster_ids)) == clusters
    )


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
    """Windows of unlike lengths, scored from unlike places: two that fit one batch, and two that fit none."""
    base, other, windows, kept = pair
    first, second, third = windows.tokens
    uneven = Windows([first, second[:90], third[:90], third], [1, 60, 1, 150], list("0123"), {})
    seen = []
    for batch in (1, 2):
        likelihood, divergence = Likelihood(uneven), DivergenceObserver(uneven)
        with torch.inference_mode():
            observe(other, uneven, [likelihood, divergence], references.Itself(base, uneven), batch)
        seen.append((likelihood.finish()[0], divergence.finish()))
    (alone, apart), (together, beside) = seen
    assert alone.weights == (STRETCH + 49, 30, 89, STRETCH - 100)
    assert together.values == pytest.approx(alone.values, rel=1e-5)
    for one, two in zip(apart, beside, strict=True):
        assert one.item_ids == two.item_ids
        assert two.values == pytest.approx(one.values, abs=1e-5)
    whole = diverge(other, windows, kept)["kl"]
    expected = dict(zip(whole.item_ids, whole.values, strict=True))
    found = dict(zip(apart[0].item_ids, apart[0].values, strict=True))
    assert found["0:177"] == pytest.approx(expected["0:177"], abs=1e-6)
    assert found["1:60"] == pytest.approx(expected["1:60"], abs=1e-6)
    assert found["3:150"] == pytest.approx(expected["2:150"], abs=1e-6)


class Wide(Factored):
    """A model with a head of 256,000 tokens, which notes how many rows it is asked for at a time."""

    factored, device, vocabulary = True, "cpu", 256_000

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.weight = torch.randn(self.vocabulary, 2)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.randn(*tokens.shape, 2)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(hidden))
        return hidden @ self.weight.T


def test_memory_stays_bounded_whatever_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    class Notes:
        sizes: ClassVar[list[int]] = []

        def observe(self, chunk: Chunk) -> None:
            self.sizes.append(4 * chunk.prediction.exponents.numel())

    monkeypatch.undo()
    model, windows, row = Wide(), plain([list(range(200))]), 4 * Wide.vocabulary
    observe(model, windows, [Notes()], None)  # type: ignore[arg-type, list-item]
    assert model.asked == [LOGITS_BYTES // row, 199 - LOGITS_BYTES // row]
    assert max(Notes.sizes) == BLOCK_BYTES["cpu"] // row * row
    assert sum(Notes.sizes) == 199 * row


def test_one_stretch_of_logits_is_held_at_a_time_however_long_the_window() -> None:
    """Of the variant's and of the baseline's each: one is computed when none of an earlier stretch is left."""
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        held.append(sum(each() is not None for each in made))
        logits = hidden @ weight
        made.append(weakref.ref(logits))
        return logits

    weight, windows = torch.randn(2, 512), plain([[index % 512 for index in range(10 * STRETCH)]] * 2)
    model = Wide()
    model.vocabulary, model.head = 512, head  # type: ignore[method-assign, misc]
    kept = SimpleNamespace(window=lambda index: torch.randn(10 * STRETCH - 1, 2), logits=head)
    divergence = DivergenceObserver(windows)
    observe(model, windows, [Likelihood(windows), divergence], kept)  # type: ignore[arg-type]
    assert len(made) == 2 * 2 * 10
    assert held == [0, 1] * (2 * 10)
    assert len(divergence.finish()[0].values) == 2 * (10 * STRETCH - 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_make_the_run_invalid(bad: float) -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = bad
    chunk = Chunk(3, 1, torch.tensor([0]), predict(logits), predict(torch.zeros(1, 4)))
    for observer in (Likelihood, DivergenceObserver):
        with pytest.raises(InvalidRunError, match="window 3"):
            observer(plain([[1, 2]] * 4)).observe(chunk)


def test_a_baseline_that_is_not_finite_is_no_reference(tiny: Path, tmp_path: Path) -> None:
    broken = loaded(tiny)
    hidden = broken.hidden
    broken.hidden = lambda tokens: hidden(tokens) / (tokens[..., :1, None] != 7)  # type: ignore[method-assign]
    with pytest.raises(InvalidRunError, match="window 1"), torch.inference_mode():
        references.write(broken, plain([[1, 2, 3], [7, 2, 3], [7, 2, 3]]), tmp_path)


def test_a_certain_disagreement_has_a_known_divergence() -> None:
    """KL of (1/2, 1/2) from (1/4, 3/4) is ½·ln 2 + ½·ln(2/3); the other way ¼·ln ½ + ¾·ln(3/2)."""
    divergence = DivergenceObserver(plain([[0, 1]]))
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    divergence.observe(Chunk(0, 1, torch.tensor([1]), predict(q + 7), predict(p)))
    found = {m.metric: m.values[0] for m in divergence.finish()}
    assert found == pytest.approx(
        {
            "kl": 0.5 * math.log(2) + 0.5 * math.log(2 / 3),
            "kl_reverse": 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2),
            "top1_agreement": 0,  # of equals the first is taken
            "top5_agreement": 1,
            "delta_p": 0.25,
            "baseline_confidence": 0.5,
        },
        rel=1e-6,
    )
