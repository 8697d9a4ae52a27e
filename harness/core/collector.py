"""Pauses the garbage collector while many objects are made that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which would walk all records again and again while they are made.

    Nor does it walk them right afterwards: they count as old then, as they would have become.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():  # nobody else keeps objects out of its way
                gc.freeze()
                gc.unfreeze()  # into the oldest generation
            gc.enable()
