"""Names of points do not cover one another."""

from __future__ import annotations

import pytest

from harness.report.plots.labels import CHARACTER_PX, LINE_PX, Box, place


def boxes(points: list[tuple[float, float]], names: list[str]) -> list[Box]:
    made = []
    placed = place(points, names, 600, 360, [6.0] * len(points))
    for (x, y), (dx, dy), name in zip(points, placed, names, strict=True):
        half = len(name) * CHARACTER_PX / 2
        made.append(Box(x + dx - half, y + dy - LINE_PX / 2, x + dx + half, y + dy + LINE_PX / 2))
    return made


def test_twelve_points_in_a_cluster_get_names_apart() -> None:
    points = [(250.0 + 25 * (index % 4), 150.0 + 22 * (index // 4)) for index in range(12)]
    found = boxes(points, [f"method 4-bit g{index}" for index in range(12)])
    covered = sum(one.overlap(other) for n, one in enumerate(found) for other in found[n + 1 :])
    assert covered < 0.02 * sum((box.right - box.left) * LINE_PX for box in found)


def test_a_name_stays_in_its_frame() -> None:
    (box,) = boxes([(598.0, 358.0)], ["a rather long name"])
    assert box.outside(Box(0, 0, 610, 360)) == 0


@pytest.mark.parametrize("radius", [3.0, 12.0])
def test_a_lone_point_has_its_name_to_the_right_beside_its_marker(radius: float) -> None:
    ((dx, dy),) = place([(100, 100)], ["name"], 600, 360, [radius])
    assert dy == 0
    assert radius < dx - len("name") * CHARACTER_PX / 2 < radius + LINE_PX / 2
