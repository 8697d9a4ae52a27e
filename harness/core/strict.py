"""The base class of everything that a user writes: recipes and parameters of methods."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen; rejects unknown keys; converts nothing silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
