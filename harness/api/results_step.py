"""What functions that change results yield: one step after the other, each when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Action = TypeVar("Action", bound=str, covariant=True)


@dataclass(frozen=True)
class ResultsStep(Generic[Action]):
    """What was done to one attempt, folder or file, by its path or URL, and how or why."""

    path: str
    action: Action
    detail: str
