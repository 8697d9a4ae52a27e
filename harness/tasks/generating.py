"""Text that a model writes after prompts until it writes a stop sequence, as lm-eval's HFLM would have it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from harness.contracts import LoadedModel
from harness.errors import UnsupportedError
from harness.tasks.prefix_tree import common

if TYPE_CHECKING:
    import torch

Prompt = tuple[tuple[int, ...], Mapping[str, Any]]
"""Tokens, and lm-eval's settings of generation."""
DEFAULT_NEW_TOKENS = 256
"""HFLM's, where a task sets no limit."""
ROWS = 16
"""Prompts at a time: more of them make a step of decoding cheaper, and wait longer for the slowest."""
STRETCH = 16
"""Steps after which the rows that are done leave the batch."""
PLAIN_SETTINGS = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
"""Settings that do not count steps, so that writing can be continued in another call."""
SHARED_TOKENS = 32
"""From how many on the common beginning of all prompts is computed once."""


def generate(
    model: LoadedModel, tokenizer: Any, prompts: Sequence[Prompt], max_length: int, alone: bool, seed: int
) -> list[str]:
    """What follows each prompt, in order. ``alone`` puts one prompt at a time to the model; ``seed`` is for sampling.

    Raises UnsupportedError where the model's length leaves no room for a prompt.
    """
    import torch

    torch.manual_seed(seed)
    written = [""] * len(prompts)
    groups: dict[str, list[int]] = {}
    for index, (_, settings) in enumerate(prompts):
        groups.setdefault(json.dumps(settings, sort_keys=True, default=repr), []).append(index)
    for group in groups.values():
        writer = _Writer(model, tokenizer, max_length, prompts[group[0]][1])
        ordered = sorted(group, key=lambda index: len(prompts[index][0]), reverse=True)
        texts = writer.write([prompts[index][0] for index in ordered], 1 if alone else ROWS)
        for index, text in zip(ordered, texts, strict=True):
            written[index] = text
    return written


class _Writer:
    """Writes after prompts of equal settings."""

    def __init__(self, model: LoadedModel, tokenizer: Any, max_length: int, settings: Mapping[str, Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))
        if self._settings.get("temperature") == 0.0:
            del self._settings["temperature"]  # transformers takes none where it does not sample
        self._new = self._settings.pop("max_gen_toks")
        end = tokenizer.decode(tokenizer.eos_token_id, skip_special_tokens=False)
        self._stops = handle_stop_sequences(self._settings.pop("until"), eos=end)
        self._room = max_length - self._new
        if self._room <= 0:
            raise UnsupportedError(f"{self._new} tokens are to be written, and the model takes {max_length} in all")
        self._stretch = STRETCH if model.branching() and self._settings.keys() <= PLAIN_SETTINGS else self._new
        lengths = [len(tokenizer.encode(stop, add_special_tokens=False)) for stop in self._stops]
        self._look_back = max(lengths) + 2  # a stop sequence may be written in other tokens than its own

    def write(self, prompts: Sequence[tuple[int, ...]], rows: int) -> list[str]:
        import torch

        kept = [prompt[-self._room :] for prompt in prompts]
        shared = self._shared(kept, rows)
        waiting = iter(kept)
        texts: list[str] = []
        with torch.inference_mode():
            past = self._model.extend(torch.tensor(kept[0][:shared]), None)[1] if shared else None
            while batch := list(islice(waiting, rows)):
                texts += self._batch(batch, shared, past)
        return texts

    def _shared(self, prompts: Sequence[tuple[int, ...]], rows: int) -> int:
        """How many tokens all prompts begin with, where it pays to compute them once; one of each must be left."""
        if rows == 1 or len(prompts) < 2 or not self._model.branching():
            return 0
        shared = min(common(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
        return shared if shared >= SHARED_TOKENS else 0

    def _batch(self, prompts: Sequence[tuple[int, ...]], shared: int, past: Any | None) -> list[str]:
        """Padding stands on the left, but after what is shared. Rows that are done leave."""
        import torch

        tokens, mask = self._padded(prompts, shared)
        rows = torch.arange(len(prompts))
        written = [torch.zeros(0, dtype=torch.int64)] * len(prompts)
        stop = _Stop(self._tokenizer, self._stops, self._look_back)
        if past is not None:
            past = self._model.select(past, torch.zeros_like(rows))
        for begun in range(0, self._new, self._stretch):
            stop.begin([written[row] for row in rows])
            steps = min(self._stretch, self._new - begun)
            settings = {**self._settings, "max_new_tokens": steps, "pad_token_id": self._tokenizer.pad_token_id}
            found, ended, past = self._model.generate(tokens, mask, past, stop, **settings)
            found = found.cpu()
            for row, mine, end in zip(rows, found, stop.ends, strict=True):
                written[row] = torch.cat([written[row], mine[:end]])
            going = torch.tensor([end is None for end in stop.ends]) & ~ended.cpu()
            if not going.any() or begun + steps >= self._new:
                break
            rows, mask = rows[going], torch.cat([mask, torch.ones_like(found)], dim=1)[going]
            tokens = torch.cat([tokens, found], dim=1)[going]
            if not going.all():
                past = self._model.select(past, going.nonzero()[:, 0])
        return [self._text(each.tolist()) for each in written]

    def _padded(self, prompts: Sequence[tuple[int, ...]], shared: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        width = max(map(len, prompts))
        tokens = torch.full((len(prompts), width), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            own = width - len(prompt) + shared
            tokens[row, :shared], tokens[row, own:] = torch.tensor(prompt).tensor_split([shared])
            mask[row, :shared] = mask[row, own:] = 1
        return tokens, mask

    def _text(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(text, stop=self._stops, think_end_token=None))


class _Stop:
    """Tells which rows have written a stop sequence; ``ends`` are the tokens that each then had of this stretch."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], look_back: int) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._look_back = look_back

    def begin(self, written: Sequence[torch.Tensor]) -> None:
        """A stretch, after what each row has written before it."""
        self._before = [row[-self._look_back :].tolist() for row in written]
        self.ends: list[int | None] = [None] * len(written)

    def __call__(self, written: torch.Tensor) -> torch.Tensor:
        import torch

        last = written[:, -self._look_back :].tolist()
        going = [row for row, end in enumerate(self.ends) if end is None]
        texts = self._tokenizer.batch_decode([(self._before[row] + last[row])[-self._look_back :] for row in going])
        for row, text in zip(going, texts, strict=True):
            if any(stop in text for stop in self._stops):
                self.ends[row] = written.shape[1]
        return torch.tensor([end is not None for end in self.ends], device=written.device)
