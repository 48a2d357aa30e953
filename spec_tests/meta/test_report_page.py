"""The page of a report in a real browser: a failing, a partial and a passing subject, looked at as readers do."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spec_tests.clauses import all_chapters
from spec_tests.meta.browser import BROWSER, DRIVER, NEEDED, started, visit
from spec_tests.meta.browser import screenshot as write_screenshot
from spec_tests.meta.processes import REFERENCE, ROOT, mdnc_spec_many, run_arguments

if BROWSER is None or DRIVER is None:
    pytest.skip(NEEDED, allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
pytest.importorskip("torch")
pytestmark = pytest.mark.slow

HONEST = [sys.executable, str(ROOT / "spec_tests" / "meta" / "honest_port.py")]
PORT = f"cmd:{shlex.join(HONEST)} --ops describe,forward --modes eval"
RUNS = {
    "failing": [
        *run_arguments("py:spec_tests.faults.blocks:eps_1e3_everywhere", "--clause", "3", "--clause", "4.5"),
        *("--clause", "4.18", "--clause", "6.1", "--clause", "8"),
    ],
    "partial": run_arguments(f"{PORT} --dtypes F32", *(p for c in "12567" for p in ("--clause", c)), "--clause", "4.1"),
    "passing": run_arguments(REFERENCE),
}
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the reports, into which the screenshots go too."""
    folder = tmp_path_factory.mktemp("pages")
    ended = mdnc_spec_many([[*run, "--report", name] for name, run in RUNS.items()], cwd=folder)
    assert [e.status for e in ended] == [1, 2, 0], ended
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as driver:
        yield driver


def screenshot(browser: Any, file: Path) -> None:
    """The whole page, for people; its path is printed."""
    write_screenshot(browser, file)
    assert file.stat().st_size > 20_000
    print(f"screenshot: {file}")


# Every text that is shown, with its color and what is behind it.
CONTRASTS = """
const parse = (text) => {
  const numbers = text.match(/[\\d.]+/g).map(Number);
  return [...numbers.slice(0, 3), numbers.length > 3 ? numbers[3] : 1];
};
const behind = (node) => {
  for (let up = node; up; up = up.parentElement) {
    const color = parse(getComputedStyle(up).backgroundColor);
    if (color[3] === 1) return color;
  }
  return [255, 255, 255, 1];
};
const light = (color) => {
  const [r, g, b] = color.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest("script, style")) continue;
  let below = behind(node), color = parse(getComputedStyle(node).color);
  if (node.closest("svg")) {
    color = parse(getComputedStyle(node).fill);
    // What the text stands on: the last filled shape below its middle.
    const svg = node.closest("svg"), box = node.getBoundingClientRect();
    const x = box.left + box.width / 2, y = box.top + box.height / 2;
    for (const shape of svg.querySelectorAll("rect, circle, path")) {
      const at = shape.getBoundingClientRect(), style = getComputedStyle(shape);
      if (style.fill === "none" || x < at.left || x > at.right || y < at.top || y > at.bottom) continue;
      if (shape.tagName === "path" && !shape.isPointInFill(new DOMPoint(
        ...(({ x, y }) => [x, y])(new DOMPoint(x, y).matrixTransform(shape.getScreenCTM().inverse()))))) continue;
      const fill = parse(style.fill), part = fill[3] * Number(style.opacity);
      below = below.map((v, i) => i < 3 ? v * (1 - part) + fill[i] * part : 1);
    }
  }
  const [a, b] = [light(color), light(below)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push([Math.round(ratio * 100) / 100, node.tagName, String(node.className.baseVal ??
    node.className), walker.currentNode.data.trim().slice(0, 30), String(color), String(below.map(Math.round))]);
}
return found;
"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_readable(browser: Any, pages: Path, name: str, scheme: str) -> None:
    """No error in the console, nothing fetched, and every text has a contrast of 4.5 at least (WCAG AA)."""
    visit(browser, pages / name / "report.html", scheme)
    browser.get_log("performance")
    browser.refresh()
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [r["params"]["request"]["url"] for r in requests if r["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in sent} <= {"file", "data"}, sent
    assert sum(url.startswith("file:") for url in sent) == 1
    assert browser.get_log("browser") == []
    screenshot(browser, pages / f"{name}-{scheme}.png")
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.execute_script(CONTRASTS) == []
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(background[4:].split(",")[0]) < 128) == (scheme == "dark")


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_wider_than_the_window(browser: Any, pages: Path, name: str, width: int) -> None:
    visit(browser, pages / name / "report.html", width=width)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_and_opens_the_chapters(browser: Any, pages: Path) -> None:
    keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
    visit(browser, pages / "passing" / "report.html")
    focused: list[tuple[str, str]] = []
    while len(focused) < 200:
        webdriver.ActionChains(browser).send_keys(keys.TAB).perform()
        here = browser.switch_to.active_element
        if here.tag_name == "body":
            break
        focused.append((here.tag_name, here.text))
        ring = browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", here)
        assert ring != "none", f"no sign of the focus at {focused[-1]}"
        if here.tag_name == "summary":
            assert not browser.execute_script("return arguments[0].parentElement.open", here)
            webdriver.ActionChains(browser).send_keys(keys.ENTER).perform()
            assert browser.execute_script("return arguments[0].parentElement.open", here)
    assert focused[0] == ("a", "Skip to the verdict by chapter")
    summaries = [text for tag, text in focused if tag == "summary"]
    for number, title in all_chapters().items():
        assert any(text.startswith(f"{number} {title}") for text in summaries), (title, summaries)


def test_a_chapter_counts_what_was_asked_for(browser: Any, pages: Path) -> None:
    visit(browser, pages / "failing" / "report.html")
    told = [one.text for one in browser.find_elements("css selector", ".chapters .num")]
    # A test of 6.1 may find 6.2 broken, which counts then.
    results = json.loads((pages / "failing" / "report.json").read_text(encoding="utf-8"))["clause_results"]
    asked = [c for c, result in results.items() if c.startswith("6.") and result["status"] != "deselected"]
    assert "6.1" in asked
    of_6 = f"0 of {len(asked)} hold"
    assert told == ["–", "–", "14 of 14 hold", "0 of 2 hold", "–", of_6, "–", "7 of 7 hold", "–"]


def test_links_and_buttons(browser: Any, pages: Path) -> None:
    """A link opens the chapter that it leads into; a button leaves only what does not hold."""
    visit(browser, pages / "failing" / "report.html")
    chapter = "return document.getElementById('chapter-3').open"
    assert not browser.execute_script(chapter)
    browser.execute_script("document.querySelector('.cells a[href=\"#c-3.2\"]').click()")
    wait = pytest.importorskip("selenium.webdriver.support.wait").WebDriverWait
    wait(browser, 5).until(lambda b: b.execute_script(chapter))
    shown = (
        "return [...document.querySelectorAll('ol.spec > li')].filter((one) => one.checkVisibility()).map((o) => o.id)"
    )
    browser.find_element("id", "only-troubled").click()
    results = json.loads((pages / "failing" / "report.json").read_text(encoding="utf-8"))["clause_results"]
    rest = [clause for clause, result in results.items() if result["status"] not in ("passed", "deselected")]
    assert {"4.5", "4.18", "6.1"} <= set(rest)
    assert browser.execute_script(shown) == [f"c-{clause}" for clause in rest]
    browser.find_element("id", "only-troubled").click()
    browser.find_element("id", "open-all").click()
    assert "c-1.1" in browser.execute_script(shown)


def test_the_drawings(browser: Any, pages: Path) -> None:
    """The guilty layers are marked and named, and the heat map of the failing tensor is there."""
    visit(browser, pages / "failing" / "report.html")
    [card] = browser.find_elements("css selector", "article.card.bad")
    assert card.find_element("css selector", ".step").text == "4.5"
    assert "It behaves exactly like eps = 0.001" in card.find_element("css selector", ".diagnosis").text
    label = card.find_element("css selector", "svg.block").get_attribute("aria-label")
    assert "The error is at conv1.0, conv2.0, conv3.0" in label
    assert len(card.find_elements("css selector", "svg.block g.guilty")) == 3
    cells = card.find_elements("css selector", "figure.heat svg text")
    assert cells
    assert all(text.is_displayed() for text in cells)
    dots = browser.find_elements("css selector", "svg.plot circle, svg.plot .cross")
    results = json.loads((pages / "failing" / "report.json").read_text(encoding="utf-8"))["clause_results"]
    assert len(dots) == sum(result["ratio"] is not None for result in results.values()) >= 3


def test_print(browser: Any, pages: Path) -> None:
    """On paper all chapters are open and the colors are those of the day."""
    visit(browser, pages / "failing" / "report.html", "dark", media="print")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    text = browser.execute_script("return document.querySelector('#chapter-1 ol.spec').checkVisibility()")
    assert text
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(printed["data"]) > 50_000
    folded = "return document.querySelector('details.detail dl').checkVisibility({contentVisibilityAuto: true})"
    assert not browser.execute_script(folded)
