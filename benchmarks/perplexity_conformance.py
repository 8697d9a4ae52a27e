"""Compares each perplexity protocol with the tool it reproduces, on the same model and text.

``python benchmarks/perplexity_conformance.py MODEL TEXT [CONTEXT [WINDOWS]]``: a folder with a transformers checkpoint
and a file of WikiText. Besides lm-eval and llama.cpp there are plain loops that share no code with the harness.
llama.cpp's binary is ``llama-perplexity`` on PATH or the one that $QHARNESS_LLAMA_PERPLEXITY names. It is skipped if
there is none, or if the model is not a Llama with a byte-level tokenizer like GPT-2's. Prints a Markdown table, which
docs/measurements/perplexity-conformance.md records.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from harness.core.engine import LoadRequest
from harness.core.record import Measurement
from harness.core.workload import PerplexityWorkload, TextRef
from harness.engines.transformers.engine import load
from harness.execution.forward import observe
from harness.metrics.perplexity import Likelihood
from harness.text.windows import cut

BINARY = "QHARNESS_LLAMA_PERPLEXITY"


def ours(folder: Path, text: Path, protocol: str, context: int, **settings: Any) -> dict[str, Measurement]:
    """The harness's measurements by name. ``settings`` are those of PerplexityWorkload."""
    model = load(LoadRequest(folder, "float32", "cpu"))
    model.probe_head()
    settings = {"windows": None, **settings}
    field = settings.pop("field", "text")
    workload = PerplexityWorkload(TextRef(text.name, str(text), field=field), protocol, context, **settings)
    windows = cut(workload, model.tokenizer)
    likelihood = Likelihood(windows)
    with torch.inference_mode():
        observe(model, windows, [likelihood], None)
    return {found.metric: found for found in likelihood.finish()}


def mean(measurement: Measurement) -> float:
    """The weighted mean of a measurement."""
    total = sum(value * weight for value, weight in zip(measurement.values, measurement.weights, strict=True))
    return total / sum(measurement.weights)


def hub_rows(text: Path) -> list[str]:
    """The rows of Salesforce/wikitext on the hub, read from the older WikiText file with the same text."""
    lines = text.read_text(encoding="utf-8").split("\n")[:-1]
    return [f"{line}\n" if line.strip() else "" for line in lines]


def hub_pages(text: Path) -> list[str]:
    """The pages of EleutherAI/wikitext_document_level: from one top-level title to the next."""
    content = "\n" + text.read_text(encoding="utf-8")
    starts = [match.start() + 1 for match in re.finditer(r"\n = (?!=)[^\n]*[^=] = (?=\n)", content)]
    return [content[a : b - 1] for a, b in zip(starts, [*starts[1:], len(content) + 1], strict=True)]


def plain_gptq(model: Any, tokenizer: Any, text: Path, context: int, windows: int) -> float:
    """The loop of GPTQ's llama.py: each window's mean cross-entropy, averaged with the windows' lengths as weights."""
    ids = tokenizer("\n\n".join(hub_rows(text)), return_tensors="pt").input_ids
    losses = []
    for index in range(windows):
        batch = ids[:, index * context : (index + 1) * context]
        losses.append(float(cross_entropy(model(batch).logits[0, :-1], batch[0, 1:])) * context)
    return math.exp(sum(losses) / (windows * context))


def plain_sliding(
    model: Any, tokenizer: Any, text: Path, context: int, stride: int, windows: int | None = None
) -> Iterator[tuple[float, int]]:
    """The loop of the Hugging Face documentation: each window's loss, weighted by the number of tokens in its mean.

    The documentation weights each window as if it had one token less; this loop does not.
    """
    ids = tokenizer("\n\n".join(hub_rows(text)), return_tensors="pt").input_ids
    length, before = ids.size(1), 0
    for number, start in enumerate(range(0, length, stride)):
        if number == windows:
            return
        end = min(start + context, length)
        batch = ids[:, start:end]
        labels = batch.clone()
        labels[:, : before - start] = -100
        yield float(model(batch, labels=labels).loss), int((labels[:, 1:] != -100).sum())
        before = end
        if end == length:
            return


def plain_llama_cpp(model: Any, ids: list[int], bos: int | None, context: int, windows: int) -> float:
    """perplexity() of llama.cpp's tools/perplexity/perplexity.cpp, for given tokens."""
    first, total, count = context // 2, 0.0, 0
    for index in range(windows):
        start = index * context
        batch = ids[start : start + context]
        if bos is not None:
            batch[0] = bos
        logits = model(torch.tensor([batch])).logits[0].double().log_softmax(-1)
        for position in range(first, context - 1):
            total -= float(logits[position, ids[start + position + 1]])
            count += 1
    return math.exp(total / count)


def lm_eval_wikitext(
    model: Any, tokenizer: Any, pages: list[str], context: int, add_bos_token: bool | None = None
) -> dict[str, float]:
    """lm-eval's own task with its transformers backend, on the pages of a local file."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pages.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
        task = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / "wikitext" / "wikitext.yaml"),
            "task": "local_wikitext",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(folder / "pages.jsonl")}, "cache_dir": str(folder)},
            "training_split": None,
            "validation_split": None,
        }
        (folder / "local.yaml").write_text(json.dumps(task))  # JSON is YAML
        settings = {"max_length": context, "batch_size": 1, "add_bos_token": add_bos_token}
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, **settings),
            tasks=["local_wikitext"],
            task_manager=TaskManager(include_path=name, include_defaults=False),
            bootstrap_iters=0,
            log_samples=False,
        )["results"]["local_wikitext"]
    return {name: float(found[f"{name},none"]) for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")}


def llama_binary() -> str | None:
    return os.environ.get(BINARY) or shutil.which("llama-perplexity")


EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
"""llama.cpp's settings for a float32 key-value cache, like everything else here; its default is float16."""


def llama_perplexity(
    binary: str, gguf: Path, text: Path, context: int, windows: int, settings: Sequence[str] = EXACT
) -> float:
    """The perplexity that llama.cpp prints."""
    command = [binary, "-m", str(gguf), "-f", str(text), "-c", str(context), "--chunks", str(windows)]
    command += ["-b", str(context), "--no-warmup", "-ngl", "0", *settings]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3600)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", ended.stdout + ended.stderr)
    if found is None:
        raise RuntimeError(f"llama-perplexity printed no figure:\n{ended.stderr[-2000:]}")
    return float(found[1])


def write_gguf(folder: Path, out: Path) -> None:
    """Writes a transformers Llama with a byte-level tokenizer like GPT-2's as a float32 GGUF file."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _write_tokenizer(writer, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:  # llama.cpp rotates neighbouring pairs, transformers the two halves of a head
                split = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
                tensor = split.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: Any, folder: Path) -> None:
    import gguf
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)


def main(folder: Path, text: Path, context: int = 512, windows: int = 8) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print("| protocol | beside | figure | tokens scored | harness | there | relative difference |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")

    def row(protocol: str, beside: str, figure: str, tokens: float, mine: float, theirs: float) -> None:
        apart = abs(mine / theirs - 1)
        print(f"| `{protocol}` | {beside} | {figure} | {tokens:.0f} | {mine:.6g} | {theirs:.6g} | {apart:.1e} |")

    with torch.inference_mode():
        nll = ours(folder, text, "gptq", context, windows=windows)["nll"]
        there = plain_gptq(model, tokenizer, text, context, windows)
        row("gptq", "plain loop", "perplexity", sum(nll.weights), math.exp(mean(nll)), there)

        nll = ours(folder, text, "sliding", context, windows=windows, stride=context // 2)["nll"]
        losses = list(plain_sliding(model, tokenizer, text, context, context // 2, windows))
        there = math.exp(sum(loss * count for loss, count in losses) / sum(count for _, count in losses))
        row("sliding", "plain loop", "perplexity", sum(nll.weights), math.exp(mean(nll)), there)

        nll = ours(folder, text, "llama.cpp", context, windows=windows)["nll"]
        here = math.exp(mean(nll))
        ids = tokenizer(text.read_text(encoding="utf-8").removesuffix("\n"), split_special_tokens=True).input_ids
        bos = tokenizer.bos_token_id if ids[0] == tokenizer.bos_token_id else None
        there = plain_llama_cpp(model, ids, bos, context, windows)
        row("llama.cpp", "plain loop", "perplexity", sum(nll.weights), here, there)
        binary = llama_binary()
        if binary is not None:
            with tempfile.TemporaryDirectory() as name:
                write_gguf(folder, Path(name) / "model.gguf")
                there = llama_perplexity(binary, Path(name) / "model.gguf", text, context, windows)
            row("llama.cpp", "llama-perplexity, float32", "perplexity", sum(nll.weights), here, there)

        found = ours(folder, text, "lm-eval", context, windows=windows)
        word, byte = found["nll_per_word"], found["nll_per_byte"]
        scored = sum(found["nll"].weights)
        task = lm_eval_wikitext(model, tokenizer, hub_pages(text)[: len(word.values)], context)
        row("lm-eval", "lm-eval", "word perplexity", scored, math.exp(mean(word)), task["word_perplexity"])
        row("lm-eval", "lm-eval", "byte perplexity", scored, math.exp(mean(byte)), task["byte_perplexity"])
        row("lm-eval", "lm-eval", "bits per byte", scored, mean(byte) / math.log(2), task["bits_per_byte"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
