"""The job summary of a GitHub workflow: the report's Markdown, cut to what GitHub takes."""

from __future__ import annotations

from dataclasses import replace

from harness.figures.table import Table
from harness.report.choice import chosen
from harness.report.page import Fault, Page
from harness.report.renderers.markdown import markdown

LIMIT_BYTES = 2**20
"""Of all that a step writes; with more, GitHub shows nothing of it."""
MOST_VARIANTS, MOST_FAULTS, MOST_LOG_LINES = 50, 30, 20
CUT = "\n\n*Cut here: a job summary holds 1 MiB. The whole report is in the other formats.*\n"


def job_summary(whole: Page, used_bytes: int = 0) -> str:
    """The Markdown; ``used_bytes`` is what the step has written before.

    Of a large table the baseline and the front stand first, of many failures the first.
    """
    tables = tuple(_shortened(table) for table in whole.tables)
    faults = tuple(_brief(fault) for fault in whole.faults[:MOST_FAULTS])
    more = len(whole.faults) - len(faults)
    if more:
        faults += (Fault(f"{more:,} more", "not shown", "the other formats tell of every run", ""),)
    text = markdown(replace(whole, tables=tables, faults=faults))
    room = LIMIT_BYTES - used_bytes
    if len(text.encode()) <= room:
        return text
    kept = text.encode()[: max(room - len(CUT.encode()), 0)].decode(errors="ignore")
    return (kept.rpartition("\n")[0] + CUT) if room > len(CUT.encode()) else ""


def _shortened(table: Table) -> Table:
    rows = chosen(table.rows, MOST_VARIANTS)
    if len(rows) == len(table.rows):
        return table
    note = f"{len(rows)} of {len(table.rows):,} variants are shown, those on the front first"
    return replace(table, rows=rows, notes=(note, *table.notes))


def _brief(fault: Fault) -> Fault:
    return replace(fault, log_tail="\n".join(fault.log_tail.splitlines()[-MOST_LOG_LINES:]))
