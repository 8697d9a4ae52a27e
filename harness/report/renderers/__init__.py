"""One file per form that a report is written in."""
