"""Compares the routers of a mixture of experts with the baseline's, while a quality run reads its text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.core.capability import LoadedModel, ShowsRouters
from harness.core.metric import Windows
from harness.errors import first_line_of
from harness.execution.context import Context
from harness.execution.reference import Reference
from harness.metrics.routing import RouterAgreement
from harness.models.scope import holds_experts


@contextmanager
def comparing_routers(context: Context, model: LoadedModel, windows: Windows, kept: Reference | None) -> Iterator[None]:
    """Inside this context the model reads the windows in order; afterwards the agreement of its routers is recorded.

    Nothing without a reference or for a dense model; a fact says why routers could not be compared.
    """
    routers = readable_routers(context, model) if kept else None
    if kept is None or routers is None:
        yield
        return
    unlike = _unlike(routers, kept)
    if unlike is not None:
        context.fact("routers_not_read", reason=unlike)
        yield
        return
    agreement = RouterAgreement(windows, kept.routed)
    with routers.watching_routers(agreement.see):
        yield
    context.add(agreement.finish())
    if agreement.infinite:
        names = sorted(agreement.infinite)
        context.fact("router_kl_not_measured", tokens=sum(agreement.infinite.values()), blocks=tuple(names))


def _unlike(routers: ShowsRouters, kept: Reference) -> str | None:
    """Why a model's routers cannot be compared with those of the reference; None if they can."""
    if not kept.router_blocks:
        return "the reference holds nothing of the baseline's routers: they could not be read, or it is an old one"
    if set(routers.router_blocks()) != kept.router_blocks:
        return "its layers of experts are not those of the baseline"
    return None


def readable_routers(context: Context, model: LoadedModel) -> ShowsRouters | None:
    """The model if it is a mixture of experts whose routers can be read, else None; a fact says why they cannot."""
    if not any(holds_experts(name, len(shape)) for name, shape in context.shapes.items()):
        return None
    if not isinstance(model, ShowsRouters):
        reason = f"as {context.spec.engine} runs the model here, it does not show what its routers do"
    else:
        try:
            return model if model.router_blocks() else None
        except Exception as error:  # noqa: BLE001 - becomes a fact
            reason = first_line_of(error)
    context.fact("routers_not_read", reason=reason)
    return None
