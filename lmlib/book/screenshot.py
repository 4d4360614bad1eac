"""Take the README's picture from the built site: `python -m lmlib.book.screenshot` after `make book`.

Needs playwright (extra `test`) and an installed Chromium or Chrome.
"""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path

from lmlib.book import settings
from lmlib.book.pipeline.serve import server

PAGE = "/chapters/01_tokenization.html"
LIVE = "lm-widget"
"""The element of a live widget; the picture shows the first one of the page."""


def take(html: Path, picture: Path, chromium: str) -> None:
    """Show the first widget of `PAGE` as a reader on a laptop sees it, and save it as PNG."""
    from playwright.sync_api import sync_playwright

    running = server(html, port=0)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
        page.goto(f"http://127.0.0.1:{running.server_port}{PAGE}", wait_until="networkidle")
        # Its top goes just below the bar of the page.
        page.locator(LIVE).first.evaluate("e => scrollTo(0, e.getBoundingClientRect().top + scrollY - 70)")
        page.wait_for_selector(f"{LIVE}[data-state=live]", timeout=120_000)
        page.screenshot(path=str(picture))
        browser.close()
    running.shutdown()


def main() -> None:
    """Command line of this module."""
    root = settings.root()
    html = root / "_build" / "html"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Neither chromium nor google-chrome is on the PATH.")
    if not (html / PAGE.lstrip("/")).is_file():
        sys.exit("There is no built site yet: run `make book` first.")
    take(html, root / "book" / "_static" / "readme.png", chromium)


if __name__ == "__main__":
    main()
