"""Checks that the scales of a variant can be meant: none is NaN or infinite, no tensor's are all zero."""

from __future__ import annotations

from collections.abc import Callable

from harness.core.capability import ScaleCheck, ScaleFault
from harness.errors import InvalidRunError
from harness.execution.context import Context

MOST_NAMES = 5


def verify_scales(context: Context, check: Callable[[], ScaleCheck]) -> None:
    """Records how many scales a checkpoint or a loaded model has, and labels groups whose scale is zero.

    Raises InvalidRunError, with the tensors' names, for scales that no quantizer can mean.
    """
    with context.phase("check scales"):
        found = check()
    if not found.tensors:
        return
    fatal = [each for each in found.faults if each.fatal]
    if fatal:
        more = f", and {len(fatal) - MOST_NAMES} more tensors" if len(fatal) > MOST_NAMES else ""
        raise InvalidRunError(f"wrong scales: {', '.join(map(_described, fatal[:MOST_NAMES]))}{more}")
    context.fact("scales", scales=found.scales, tensors=found.tensors)
    if found.faults:
        context.label(
            "zero_scales",
            scales=sum(each.zero for each in found.faults),
            count=len(found.faults),
            tensors=tuple(each.name for each in found.faults[:MOST_NAMES]),
        )


def _described(fault: ScaleFault) -> str:
    if fault.not_finite:
        return f"{fault.not_finite} of {fault.values} in {fault.name} are NaN or infinite"
    return f"all {fault.values} in {fault.name} are zero"
