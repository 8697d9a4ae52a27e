"""The memory that a model needs with each method, estimated before anything is downloaded."""

from __future__ import annotations

from collections.abc import Sequence

from harness.models import shapes
from harness.models.shapes import ModelShapes
from harness.planning.estimate import chosen, fits, gpus
from harness.planning.estimate.fits import EstimateRequest, MemoryEstimate


def estimate(
    model: str,
    methods: Sequence[str] = (),
    context: int | None = None,
    batch: int = 1,
    gpu: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
) -> tuple[ModelShapes, EstimateRequest, list[MemoryEstimate]]:
    """The memory that a model needs, from its headers or its config.json alone: one estimate per method.

    ``methods`` are written as on the command line (``rtn bits=4 group_size=64``); the default is all methods.
    ``context`` counts prompt and answer tokens together. ``gpu`` is a size or the name of a GPU to fit into.
    Raises UsageError for an unknown method, parameter, GPU or dtype, and SourceError for a model that cannot be read.
    """
    variants = [chosen.parse(text) for text in methods] or chosen.every()
    budget = gpus.budget(gpu) if gpu is not None else None
    model_shapes = shapes.read(model, revision)
    request = fits.request(model_shapes, context, batch, budget)
    return model_shapes, request, fits.estimates(model_shapes, variants, request, dtype)
