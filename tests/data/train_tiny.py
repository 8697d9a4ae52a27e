"""Train the tiny Llama of the default tests: ``nice -n 10 .venv/bin/python tests/data/train_tiny.py [FOLDER]``.

A byte-level BPE of 512 tokens and a four-layer Llama learn from the harness's demo calibration text.
The last tenth of that text chooses the checkpoint; ``demo.txt`` is only measured, once, at the end.
One thread and fixed seeds: the same machine and versions give the same weights.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
TEXTS = HERE.parents[1] / "harness" / "text" / "data"
BOS, EOS = "<s>", "</s>"
VOCAB, CONTEXT, BATCH = 512, 128, 16
STEPS, WARMUP, CHECK_EVERY = 400, 50, 25
PEAK_RATE, WEIGHT_DECAY, SEED = 3e-3, 0.1, 0
REPORTED_TOKENS = 4000

README = """\
# tiny-llama

A Llama of {parameters:,} parameters (4 layers, hidden 64, 4 heads, 2 key-value heads, tied embeddings, float32)
with a byte-level BPE of {vocab} tokens (`<s>` = 0, added once at the start; `</s>` = 1), for the default tests.
Trained on crops of {context} tokens of `harness/text/data/demo_calibration.txt`; longer contexts are unseen.
Made by: `nice -n 10 .venv/bin/python tests/data/train_tiny.py`
Held out: {loss:.3f} nats per token on the first {reported:,} tokens of `harness/text/data/demo.txt`, never trained on,
in windows of {context} (guessing: {guess:.3f}); {chosen:.3f} on the last tenth of the calibration text, which chose it.
Licence: CC0 1.0, as the text it learned from.
"""


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from ``text`` that puts BOS once before what it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model() -> LlamaForCausalLM:
    """The untrained network."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def crops(ids: torch.Tensor) -> torch.Tensor:
    """A batch of random crops; in half of them BOS stands for the first token, as at a text's start."""
    starts = torch.randint(len(ids) - CONTEXT + 1, (BATCH, 1))
    batch = ids[starts + torch.arange(CONTEXT)]
    batch[::2, 0] = 0
    return batch


@torch.no_grad()
def held_out(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Mean nats per token over windows of CONTEXT that do not overlap, each token but a window's first."""
    model.eval()
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    loss = float(model(input_ids=windows, labels=windows).loss)
    model.train()
    return loss


def rate(step: int) -> float:
    """Linear warm-up, then a cosine to a hundredth, as a fraction of the peak rate."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def train(model: LlamaForCausalLM, ids: torch.Tensor, chooser: torch.Tensor) -> float:
    """Fit ``model`` to ``ids`` and leave in it the checkpoint with the least loss on ``chooser``; that loss."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    scales = [p for p in model.parameters() if p.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    for step in range(1, STEPS + 1):
        batch = crops(ids)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            value = held_out(model, chooser)
            print(f"step {step:5d}  train {loss.item():.3f}  calibration tail {value:.3f}", flush=True)
            if value < best:
                best, kept = value, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return best


def main(folder: Path) -> None:
    """Train, measure, save."""
    began = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    text = (TEXTS / "demo_calibration.txt").read_text(encoding="utf-8")
    tokenizer = train_tokenizer(text)
    ids = torch.tensor(tokenizer(text, verbose=False).input_ids)
    cut = len(ids) * 9 // 10
    model = new_model()
    chosen = train(model, ids[:cut], ids[cut:])
    demo = tokenizer((TEXTS / "demo.txt").read_text(encoding="utf-8"), verbose=False).input_ids
    loss = held_out(model, torch.tensor(demo[:REPORTED_TOKENS]))
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    facts = {"parameters": parameters, "vocab": VOCAB, "context": CONTEXT, "reported": REPORTED_TOKENS}
    readme = README.format(loss=loss, chosen=chosen, guess=math.log(VOCAB), **facts)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    print(f"held-out loss {loss:.4f} nats per token; {time.monotonic() - began:.0f} s; {folder}")


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "tiny-llama")
