"""A page as a browser shows it: widths of a phone and a desktop, light and dark, to look at and to check.

    python benchmarks/look.py runs/quickstart/report.html /tmp/look

Writes a PNG for each and prints width, height, overflow and console messages. Needs Chromium (or Chrome).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS_PX = (390, 1440)
SCHEMES = {"light": 1, "dark": 0}  # Blink's preferredColorScheme
TALLEST_PX = 16_000
# Shown in a frame of the asked width, for a window does not become as narrow as a phone.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe width="{width}" height="{height}" srcdoc="{page}"></iframe>"""
NARROWEST_PX = 500
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const small = [...document.querySelectorAll("*")].filter(e => e.childNodes.length && [...e.childNodes].some(
    n => n.nodeType == 3 && n.data.trim()) && e.getClientRects().length).map(e => {
    const m = e.getScreenCTM ? e.getScreenCTM() : {c: 0, d: 1};
    return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.c, m.d)});
  const found = {width: innerWidth, content: root.scrollWidth, height: root.scrollHeight,
    scheme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light", smallest: Math.min(...small)};
  parent.document.documentElement.dataset.look = JSON.stringify(found);
}, 50))</script>"""


class Look(NamedTuple):
    """What the browser found at one width in one colour scheme."""

    width: int  # px, of the window
    content: int  # px; more than `width` overflows
    height: int
    scheme: str
    smallest: float  # px, the smallest text
    console: tuple[str, ...]  # errors and warnings


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def look(page: Path, *, width: int, scheme: str, browser: str) -> Look:
    """Loads `page` with a probe in it; nothing is written beside it."""
    done = _run(
        page, "--dump-dom", "--virtual-time-budget=2000", browser=browser, scheme=scheme, size=(width, 1000)
    )
    found = re.search(r'data-look="([^"]*)"', done.stdout)
    if found is None:
        raise OSError(f"{browser} showed nothing of {page}: {done.stderr[-400:]}")
    console = tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return Look(**json.loads(unescape(found[1])), console=console)


def shoot(page: Path, target: Path, *, width: int, height: int, scheme: str, browser: str) -> None:
    """A picture of the whole page."""
    _run(page, f"--screenshot={target.resolve()}", browser=browser, scheme=scheme, size=(width, height))
    with Image.open(target) as picture:
        picture.crop((0, 0, width, height)).save(target)


def _run(
    page: Path, *words: str, browser: str, scheme: str, size: tuple[int, int]
) -> "subprocess.CompletedProcess[str]":
    with tempfile.TemporaryDirectory() as folder:
        text = page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>")
        framed = Path(folder) / "frame.html"
        framed.write_text(FRAME.format(width=size[0], height=size[1], page=escape(text)), encoding="utf-8")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--enable-logging=stderr", f"--user-data-dir={folder}/profile"]
        command += [f"--window-size={max(size[0], NARROWEST_PX)},{size[1]}"]
        command += [f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", *words, framed.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description="Looks at a page at two widths, light and dark.")
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path, help="for the pictures")
    arguments = parser.parse_args()
    browser = find_browser()
    if browser is None:
        print(f"error: none of {', '.join(BROWSERS)} is installed", file=sys.stderr)
        return 2
    arguments.folder.mkdir(parents=True, exist_ok=True)
    is_bad = False
    for width in WIDTHS_PX:
        for scheme in SCHEMES:
            seen = look(arguments.page, width=width, scheme=scheme, browser=browser)
            target = arguments.folder / f"{arguments.page.stem}-{width}-{scheme}.png"
            height = min(seen.height, TALLEST_PX)
            shoot(arguments.page, target, width=width, height=height, scheme=scheme, browser=browser)
            print(f"{target}: {seen}")
            is_bad |= seen.content > seen.width or bool(seen.console)
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
