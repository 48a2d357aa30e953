"""A headless Chromium that looks at the page of a report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
# What to say where one of the two is not there.
NEEDED = "needs Chromium and its driver: apt-get install chromium chromium-driver"


@contextmanager
def started() -> Iterator[Any]:
    """The driver of a new browser, which is closed at the end. Needs selenium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    if BROWSER is None or DRIVER is None:
        raise RuntimeError(NEEDED)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1"):
        options.add_argument(flag)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # The sandbox refuses to run for root.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def resize(browser: Any, width: int, height: int) -> None:
    """Give the window this size, in the pixels of the page."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def visit(browser: Any, page: Path, scheme: str = "light", width: int = 1200, **media: str) -> None:
    """Open a file as a reader does who likes light or dark pages; `media` is ``"print"`` for paper."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features, **media})
    resize(browser, width, 1000)
    browser.get("about:blank")
    browser.get(page.as_uri())


def screenshot(browser: Any, file: Path, height: int | None = None) -> None:
    """Write the top of the page, down to `height`, as a PNG file; without one, the whole page."""
    whole = int(browser.execute_script("return document.documentElement.scrollHeight"))
    resize(browser, browser.execute_script("return window.innerWidth"), min(height or whole, 15_000))
    if not browser.save_screenshot(str(file)):
        raise OSError(f"the picture could not be written: {file}")
