"""Takes the pictures of the report's page, by the Chromium that $BROWSER_PATH names, or Debian's.

python docs/make_pictures.py reports/quickstart/report.html
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
PAGES = DOCS / "explanation" / "pages"
LAPTOP = {"width": 1440, "height": 900}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
A4 = {"width": 1032, "height": 703}
"""Across, within margins of 12 mm, at 96 dots per inch."""
COLOURS = 256


@dataclass(frozen=True)
class Picture:
    """What the page looks like in a window with these ``options``; ``width`` is that of the picture (px)."""

    path: Path
    width: int
    options: dict[str, Any]
    media: dict[str, Any] = field(default_factory=dict)


PICTURES = (
    Picture(DOCS / "report.png", 1440, {"viewport": LAPTOP}),
    Picture(PAGES / "dark.png", 840, {"viewport": LAPTOP, "color_scheme": "dark"}),
    Picture(PAGES / "paper.png", 840, {"viewport": A4}, {"media": "print"}),
    Picture(PAGES / "phone.png", 390, PHONE),
)


def taken(browser: Any, page: Path, picture: Picture) -> Image.Image:
    opened = browser.new_page(**picture.options)
    opened.goto(page.resolve().as_uri())
    if picture.media:
        opened.evaluate("dispatchEvent(new Event('beforeprint'))")
        opened.emulate_media(**picture.media)
    while not opened.locator(".first .main-svg").count():  # the page's policy forbids Playwright's own waiting
        opened.wait_for_timeout(50)
    opened.wait_for_timeout(1000)  # the names beside the markers are placed after them
    found = Image.open(io.BytesIO(opened.screenshot())).convert("RGB")
    opened.close()
    return found.resize((picture.width, round(found.height * picture.width / found.width)), Image.Resampling.LANCZOS)


def main(page: Path) -> None:
    with sync_playwright() as driver:
        chromium = os.environ.get("BROWSER_PATH", "/usr/bin/chromium")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--hide-scrollbars"])
        for picture in PICTURES:
            few = taken(browser, page, picture).quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(picture.path, optimize=True)
            print(picture.path.relative_to(DOCS.parent), picture.path.stat().st_size)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
