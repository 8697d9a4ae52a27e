"""The records that describe one variant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from harness.core.identity import DecodeMode
from harness.core.record import Measurement, RunRecord
from harness.core.variant import Variant


@dataclass(frozen=True)
class Evidence:
    """The records that describe one variant.

    ``performance`` and ``baseline_performance`` are of one session, node and decode mode, and so are ``serving`` and
    ``baseline_serving``, of servers under load; ``baseline_quality`` and ``baseline_tasks`` were measured with the
    libraries of ``quality`` and ``tasks``. ``noise_floor`` is the baseline's divergence from itself, ``machine`` the
    run that measured the machine. ``is_baseline`` marks the variant that all others are compared with, including the
    unquantized model on another engine.

    ``control``, ``control_performance``, ``control_tasks`` and ``control_serving`` are the runs of the unquantized
    model on the variant's own engine, chosen like those of the baseline; none if the variant runs on the engine of the
    reference. ``is_control`` marks that model, whose ``control`` is its own quality. Speeds, tasks and servers have no
    control if it is the baseline.
    """

    is_baseline: bool
    quality: RunRecord | None
    quantize: RunRecord | None
    performance: tuple[RunRecord, ...]
    tasks: tuple[RunRecord, ...]
    baseline_quality: RunRecord | None
    noise_floor: Measurement | None
    baseline_performance: tuple[RunRecord, ...]
    baseline_tasks: tuple[RunRecord, ...]
    machine: RunRecord | None = None
    is_control: bool = False
    control: RunRecord | None = None
    control_performance: tuple[RunRecord, ...] = ()
    control_tasks: tuple[RunRecord, ...] = ()
    serving: tuple[RunRecord, ...] = ()
    baseline_serving: tuple[RunRecord, ...] = ()
    control_serving: tuple[RunRecord, ...] = ()

    @cached_property
    def all(self) -> tuple[RunRecord, ...]:
        """Root causes first: a variant that was not quantized cannot be measured."""
        measured = (*self.tasks, *self.performance, *self.serving)
        return tuple(run for run in (self.quantize, self.quality, *measured) if run is not None)

    @cached_property
    def variant(self) -> Variant:
        """From the newest record. A record of quantizing names only one of the engines and caches that it serves."""
        measured = [run for run in self.all if not run.spec.job.quantizes]
        return max(measured or self.all, key=lambda run: run.started_at).spec.variant

    @property
    def decode_mode(self) -> DecodeMode:
        return self.performance[0].spec.decode_mode if self.performance else "eager"

    @cached_property
    def with_figures(self) -> tuple[RunRecord, ...]:
        """The runs that figures are taken from."""
        return tuple(run for run in self.all if run.gives_figures)
