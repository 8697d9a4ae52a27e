"""How much a job computes, before anyone knows how fast: what a forecast multiplies by a model's size."""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.workload import CalibrationRef, GridCell, PerplexityWorkload, ThroughputWorkload


@dataclass(frozen=True)
class JobEffort:
    """What a job declares about its work.

    ``loads``: how often it loads the weights; ``writes_model``: whether it writes all of them. ``scored``: the text
    that it runs the model over; ``compared``: whether each token's distribution is compared with the reference's;
    ``kept``: whether the hidden states of each token are written. ``tokens``: what else it reads in forward passes.
    ``timed``: the grid that it generates, ``passes`` times. ``calibration``: what a method reads. ``apart_s``: seconds
    that depend on no model. ``largest``: about the most texts that are written together, and their lengths; None if it
    writes none.
    """

    loads: int = 0
    writes_model: bool = False
    scored: PerplexityWorkload | None = None
    compared: bool = False
    kept: bool = False
    tokens: int = 0
    timed: ThroughputWorkload | None = None
    passes: int = 1
    calibration: CalibrationRef | None = None
    apart_s: float = 0.0
    largest: GridCell | None = None

    @property
    def runs_model(self) -> bool:
        """Whether it runs a model, and so imports the libraries for that."""
        return bool(self.scored or self.tokens or self.timed)
