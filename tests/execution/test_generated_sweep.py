"""Generated texts: what the baseline writes is what transformers writes, and all variants score the same tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from harness.core.engine import LoadRequest
from harness.core.record import RunRecord
from harness.core.workload import Generation, PerplexityWorkload, TextRef
from harness.engines.transformers.engine import load
from harness.errors import DamagedError, UnsupportedError
from harness.execution.jobs.write import _answers
from harness.figures.derived.breakdown import by_position
from harness.methods.rtn.rtn import enable
from harness.text import generated

pytestmark = pytest.mark.heavy(minutes=1)

LONG = 32_768
TOKENS, PROMPTS = 72, ("The harbour at dawn", "", "She opened the letter and", "A list of things")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny: Path, sweep_type):
    """A sweep over two generated texts, and its records by title."""
    sweeps = sweep_type(tmp_path_factory.mktemp("generated"))
    (sweeps.folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    own = {"prompts": str(sweeps.folder / "prompts.txt"), "answers": 8, "tokens": TOKENS}
    records = sweeps.run(
        {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": ["none", {"rtn": {"bits": 3, "group_size": 32}}],
            "measure": {
                "perplexity": [{"text": {"generated": {**own, "temperature": 0}}}, {"text": {"generated": own}}],
                "divergence": {},
            },
        }
    )
    assert {record.status for record in records} == {"ok"}, [record.outcome.failure for record in records]
    return SimpleNamespace(records=records, cache=sweeps.cache)


def of(sweep: SimpleNamespace, kind: str, temperature: float, method: str = "none") -> RunRecord:
    (found,) = [
        record
        for record in sweep.records
        if record.spec.kind == kind
        and record.spec.method.name == method
        and record.spec.perplexity.generation.temperature == temperature
    ]
    return found


def written(sweep: SimpleNamespace, temperature: float) -> generated.Windows:
    record = of(sweep, "quality", temperature)
    return generated.read(sweep.cache.needed(record.spec, "write"))


def test_at_temperature_0_each_answer_is_what_transformers_writes_alone(sweep: SimpleNamespace, tiny: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    windows = written(sweep, 0)
    prompts = [prompt for prompt in PROMPTS if prompt]
    assert len(windows.tokens) == len(prompts)
    for prompt, window, first in zip(prompts, windows.tokens, windows.firsts, strict=True):
        asked = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            expected = model.generate(asked, do_sample=False, max_length=TOKENS, max_new_tokens=None)[0].tolist()
        assert first == asked.shape[1]
        assert window == expected


def test_all_score_the_same_tokens_and_of_the_answers_alone(sweep: SimpleNamespace) -> None:
    for temperature in (0.0, 1.0):
        windows = written(sweep, temperature)
        scored = [
            f"{index}:{position}"
            for index, (window, first) in enumerate(zip(windows.tokens, windows.firsts, strict=True))
            for position in range(first, len(window))
        ]
        for method in ("none", "rtn"):
            kl = of(sweep, "quality", temperature, method).find("kl")
            assert list(kl.item_ids) == scored
            assert kl.protocol == windows.protocol
        assert max(kl.values) > 0.01  # of rtn in 3 bits, the last method


def test_divergence_by_position_is_that_of_plain_log_probabilities(sweep: SimpleNamespace, tiny: Path) -> None:
    """Bins by the number of tokens before, prompt included, from logits that transformers gives for whole windows."""
    record, windows = of(sweep, "quality", 1, "rtn"), written(sweep, 1)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    enable()
    quantized = load(LoadRequest(sweep.cache.needed(record.spec, "quantize"), "float32", "cpu"))
    expected: list[tuple[int, float]] = []
    for tokens, first in zip(windows.tokens, windows.firsts, strict=True):
        with torch.inference_mode():
            row = torch.tensor([tokens])
            p, q = (logits[0].double().log_softmax(-1) for logits in (base(row).logits, quantized.logits(row)))
        values = (p.exp() * (p - q)).sum(-1).tolist()
        expected += [(place, values[place - 1]) for place in range(first, len(tokens))]
    bins = by_position(record.find("kl"))
    assert [each.high for each in bins] == [4, 8, 16, 32, 64, 128][-len(bins) :]
    for each in bins:
        held = [value for place, value in expected if each.low <= place < each.high]
        assert (each.tokens, each.mean.value) == (len(held), pytest.approx(fmean(held), rel=1e-4))
    assert sum(each.tokens for each in bins) == len(expected)


@pytest.mark.slow
def test_answers_of_32768_tokens(tmp_path: Path, tiny: Path, sweep_type) -> None:
    """Written, scored and divided into positions to their end, by a random model that has no token to end with."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    shape = {**sizes, "vocab_size": 512, "initializer_range": 0.2, "max_position_embeddings": LONG}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=None, eos_token_id=None)).save_pretrained(tmp_path / "model")
    shutil.copy(tiny / "tokenizer.json", tmp_path / "model")
    settings = json.loads((tiny / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["eos_token"]
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    records = sweep_type(tmp_path).run(
        {
            "models": [{"id": str(tmp_path / "model"), "dtype": "float32", "label": "random"}],
            "methods": ["none", {"rtn": {"bits": 4, "group_size": 32}}],
            "measure": {
                "perplexity": {"text": {"generated": {"answers": 2, "tokens": LONG}}},
                "divergence": {},
            },
        }
    )
    assert {record.status for record in records} == {"ok"}, [record.outcome.failure for record in records]
    kl = records[-1].find("kl")
    assert kl.protocol["ended"] == 0
    assert {item.rpartition(":")[2] for item in kl.item_ids[-2:]} == {str(LONG - 2), str(LONG - 1)}
    bins = by_position(kl)
    assert [each.low for each in bins] == [0, *(256 * 2**power for power in range(7))]
    assert sum(each.tokens for each in bins) == kl.protocol["tokens_scored"] == len(kl.values)
    assert min(each.mean.value for each in bins) > 0


def test_drawn_answers_are_less_likely_than_the_likeliest(sweep: SimpleNamespace) -> None:
    likeliest, drawn = (of(sweep, "quality", temperature).find("nll").mean for temperature in (0.0, 1.0))
    assert likeliest + 0.2 < drawn


def test_the_dtype_floor_is_known_at_every_position(sweep: SimpleNamespace) -> None:
    windows = written(sweep, 1)
    (floor,) = [
        each for each in of(sweep, "reference", 1.0).outcome.measured("kl_noise_floor") if each.protocol.get("whole")
    ]
    assert floor.protocol["dtype"] == "bfloat16"
    expected = [f"{row}:{place}" for row in range(2) for place in range(windows.firsts[row], len(windows.tokens[row]))]
    assert list(floor.item_ids) == expected


def workload(path: Path, context: int = 8) -> PerplexityWorkload:
    generation = Generation(seed=0, temperature=1.0)
    return PerplexityWorkload(TextRef("p", str(path)), "generated", context, 3, generation=generation)


class Scripted:
    """A model that writes what it is told to, and ends a row where it is told that the row is done."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def generate(self, tokens, mask, prefix, stop, *, max_new_tokens, pad_token_id, **settings):
        self.asked = (tokens.tolist(), mask.tolist(), settings)
        written = torch.tensor(self.rows)[:, :max_new_tokens]
        done = torch.zeros(len(self.rows), dtype=torch.bool)
        for step in range(written.shape[1]):
            written[done, step] = pad_token_id
            done |= stop(written[:, : step + 1])
        return written, done, None


def test_an_answer_ends_with_the_first_end_token_or_the_window(tmp_path: Path) -> None:
    """Also where the filler of a batch is an end token itself, and where prompts are of unequal length."""
    model = Scripted([[5, 2, 5, 5, 5, 5, 5], [5, 6, 3, 9, 9, 9, 9], [4, 5, 6, 7, 8, 9, 4]])
    found = list(_answers(model, [[1, 1], [1], [1, 1, 1, 1]], workload(tmp_path), {2, 3}))
    assert found == [[5, 2], [5, 6, 3], [4, 5, 6, 7]]
    tokens, mask, settings = model.asked
    assert [[token for token, seen in zip(*row, strict=True) if seen] for row in zip(tokens, mask, strict=True)] == [
        [1, 1],
        [1],
        [1, 1, 1, 1],
    ]
    whole = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert settings == whole


def test_a_prompt_that_leaves_no_room_is_refused(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("short\na much longer prompt that leaves no room for any answer at all\n")
    with pytest.raises(UnsupportedError, match=r"prompt 'a much longer .* and a window of 8 must hold"):
        generated.prompts(workload(path), AutoTokenizer.from_pretrained(tiny))


def test_changed_tokens_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a\nb\n")
    windows = generated.windows(workload(path), [[1], [2]], [[3, 4], [5]], {4})
    assert windows.protocol["ended"] == 1
    generated.save(windows, tmp_path)
    assert generated.read(tmp_path) == windows
    content = json.loads((tmp_path / generated.FILE).read_text())
    content["tokens"][0][1] = 9
    (tmp_path / generated.FILE).write_text(json.dumps(content))
    with pytest.raises(DamagedError):
        generated.read(tmp_path)
