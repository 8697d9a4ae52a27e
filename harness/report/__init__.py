"""Reports of a sweep: one self-contained HTML page, Markdown, CSV, images, model cards."""

from harness.report.write import FORMATS, write_report

__all__ = ["FORMATS", "write_report"]
