"""Logits of a few tokens, to check whether two loads of a model compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.label import difference_words
from harness.errors import InvalidRunError
from harness.models.headers import has_tokenizer
from harness.numerics.prediction import mean_divergence

if TYPE_CHECKING:
    import torch

FILE = "probe.safetensors"
TOKENS = 48
TEXT = (
    "The harbour lay quiet in the early light. Two boats had come back before dawn with a poor catch, and the men "
    "who mended nets along the wall spoke of the weather, of prices, and of the ship that was three days late."
)
TOLERANCE = 1e-3
"""Largest difference, relative to the largest logit, that rounding in another order explains
(or four units in the last place of the dtype that it runs in, if that is more)."""
HARMLESS_KL = 1e-4
"""Nats per token below which a difference beyond rounding is too small to matter: a router's near tie, a kernel that
rounds activations. The run is labelled."""


@dataclass(frozen=True)
class Difference:
    """How far logits are from the saved ones: relative to the largest, as KL, and both losses (nats per token).

    ``rounding`` says that summing in another order explains the difference.
    """

    relative: float
    kl: float
    loss_kept: float
    loss_now: float
    rounding: bool

    @property
    def figures(self) -> dict[str, float]:
        """As arguments of labels and facts."""
        return {"relative": self.relative, "kl": self.kl, "loss_kept": self.loss_kept, "loss_now": self.loss_now}

    def __str__(self) -> str:
        return difference_words(**self.figures)


def tokens(folder: Path, vocabulary: int, trust_remote_code: bool = False) -> torch.Tensor:
    """(1, at most TOKENS): the fixed text in the checkpoint's own tokens, or random ids if it has no tokenizer."""
    import torch

    if not has_tokenizer(folder):
        return torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    return ids[:, :TOKENS].remainder(vocabulary)  # type: ignore[no-any-return]


def evaluate(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The probe's ``tokens`` and an in-memory model's ``logits`` for them, on the CPU."""
    import torch

    with torch.inference_mode():
        return kept(ids, model(input_ids=ids.to(model.device)).logits)


def kept(ids: torch.Tensor, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tokens and their logits as they are saved."""
    return {"tokens": ids.contiguous(), "logits": logits.float().cpu().contiguous()}


def save(probed: dict[str, torch.Tensor], folder: Path) -> None:
    """Saves what ``evaluate`` returned."""
    from safetensors.torch import save_file

    save_file(probed, folder / FILE)


def compare(folder: Path, logits_of: Any, what: str, harmless_kl: float = HARMLESS_KL) -> Difference:
    """Compares a loaded model with the logits saved in a folder; ``logits_of`` maps tokens to logits.

    Raises InvalidRunError, with the figures, if they differ by more than is harmless.
    """
    import torch
    from safetensors.torch import load_file

    saved = load_file(folder / FILE)
    with torch.inference_mode():
        logits = logits_of(saved["tokens"])
    limit = max(TOLERANCE, 4 * torch.finfo(logits.dtype).eps)
    before, now = saved["logits"].double(), logits.double().cpu()
    relative = float((before - now).abs().max() / before.abs().max())
    difference = Difference(
        relative,
        mean_divergence(before, now),
        _loss(before, saved["tokens"]),
        _loss(now, saved["tokens"]),
        relative <= limit,
    )
    if not (difference.rounding or difference.kl <= harmless_kl):  # NaN compares as false
        raise InvalidRunError(f"{what}: {difference}")
    return difference


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> float:
    import torch

    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]))
