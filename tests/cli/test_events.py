"""Every event of a sweep has a line of JSON, and lines for people, in one place."""

from __future__ import annotations

from typing import get_args

import pytest

from harness.cli.render.events import rendered
from harness.execution.events import Event, Waiting


def test_every_event_is_rendered() -> None:
    assert set(get_args(Event)) == set(rendered.registry) - {object}


def test_programs_get_a_line_of_json_and_people_get_text() -> None:
    seen = rendered(Waiting("waiting for 2 of 2 nodes"))
    assert seen.entry == {"event": "waiting", "message": "waiting for 2 of 2 nodes"}
    assert seen.lines == ["waiting for 2 of 2 nodes"]
    with pytest.raises(TypeError, match="no event of a sweep"):
        rendered("a text")  # type: ignore[arg-type]
