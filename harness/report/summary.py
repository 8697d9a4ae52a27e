"""The job summary of a GitHub workflow: the report's Markdown, within GitHub's size limit."""

from __future__ import annotations

from dataclasses import replace

from harness.figures.table import Table
from harness.report.choice import chosen
from harness.report.page import Fault, Page
from harness.report.renderers.markdown import markdown

LIMIT_BYTES = 2**20
"""GitHub's limit for everything that a step writes; above it, GitHub shows nothing."""
MOST_VARIANTS, MOST_FAULTS, MOST_LOG_LINES = 50, 30, 20
CUT = "\n\n*Truncated: a job summary holds 1 MiB. The other formats contain the full report.*\n"


def job_summary(whole: Page, used_bytes: int = 0) -> str:
    """The Markdown; ``used_bytes`` is what the step has already written.

    A large table keeps the baseline and the front, many failures are cut to the first ones.
    """
    tables = tuple(_shortened(table) for table in whole.tables)
    faults = tuple(_brief(fault) for fault in whole.faults[:MOST_FAULTS])
    more = len(whole.faults) - len(faults)
    if more:
        faults += (Fault(f"{more:,} more", "not shown", "the other formats list every run", ""),)
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
