"""The plots of a table, drawn with plotly; no other room imports them."""

from __future__ import annotations

from plotly.offline import get_plotlyjs

from harness.figures.table import Table
from harness.report.plots.cache_grid import cache_grids
from harness.report.plots.divergence import divergences
from harness.report.plots.experts import expert_plots
from harness.report.plots.heat import speed_grid
from harness.report.plots.load import loads_of
from harness.report.plots.panels import panels_of
from harness.report.plots.plot import Plot
from harness.report.plots.scatter import scatters
from harness.report.plots.stacked import running_memory, stored_memory
from harness.report.plots.tool_calls import tool_calls

__all__ = ["Plot", "plotly_javascript", "plots_of"]


def plotly_javascript() -> str:
    """The source of plotly.js, to be embedded once per page."""
    return str(get_plotlyjs())


def plots_of(table: Table) -> tuple[Plot, ...]:
    """All plots of a table that have data, the trade-off first."""
    drawn = (
        *scatters(table),
        stored_memory(table),
        running_memory(table),
        speed_grid(table),
        *loads_of(table),
        *cache_grids(table),
        *divergences(table),
        *expert_plots(table),
        *panels_of(table),
        *tool_calls(table),
    )
    return tuple(plot for plot in drawn if plot)
