"""Draw golden/report.png: the page of a report as a reader sees it, down to the first failure with its drawings.

    python tools/picture.py                  write golden/report.png
    python tools/picture.py FILE             write FILE

Judges a wrong block in a temporary directory and opens the report in a headless Chromium. Needs torch, Chromium and its
driver, and the dependency groups tests (selenium) and picture (matplotlib). Exit status: 0 written, 1 not, 2 bad
arguments.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.image import imread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spec_tests.meta.browser import screenshot, started, visit
from spec_tests.meta.processes import mdnc_spec, run_arguments
from tools import command_line

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = "py:spec_tests.faults.blocks:up_half_pixel"
WIDTH, LARGEST = 1200, 250_000
# What differs at each run is left out.
HIDE = """
for (const one of document.querySelectorAll("dl.facts > div"))
  if (/^(started|versions)/.test(one.textContent)) one.remove();
"""
# The lower end of the drawings of the first failure.
END = """
const card = document.querySelector("article.card");
const drawings = [...card.querySelectorAll("figure, .legend")].map((one) => one.getBoundingClientRect().bottom);
return Math.ceil(Math.max(...drawings) + window.scrollY);
"""


def with_palette(picture: Path) -> bytes:
    """The same PNG file in 256 colors: each one that is added is where most is gained, every pixel has the nearest."""
    pixels = np.round(imread(picture)[..., :3] * 255).astype(np.uint8)
    colors, of_pixel, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    gain = counts.astype(float)
    palette, nearest, chosen = np.zeros((256, 3), np.uint8), np.full(len(colors), np.inf), np.zeros(len(colors), int)
    for number in range(256):
        palette[number] = colors[gain.argmax()]
        distances = ((colors.astype(int) - palette[number]) ** 2).sum(1)
        chosen[distances < nearest] = number
        nearest = np.minimum(distances, nearest)
        gain = counts * nearest
    rows = chosen.astype(np.uint8)[of_pixel.reshape(pixels.shape[:2])]
    # Every row is stored as it is, behind its filter, 0.
    body = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 9)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 3, 0, 0, 0)
    parts = ((b"IHDR", header), (b"PLTE", palette.tobytes()), (b"IDAT", body), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def draw(file: Path) -> None:
    """Write the picture. Raises RuntimeError if the run, the browser or the size is not as it must be."""
    with tempfile.TemporaryDirectory() as folder:
        ended = mdnc_spec(*run_arguments(SUBJECT, "--clause", "4", "--report", "report"), cwd=Path(folder))
        if ended.status != 1:
            raise RuntimeError(f"the run ended with {ended.status}\n{ended.out}{ended.err}")
        with started() as browser:
            visit(browser, Path(folder) / "report" / "report.html", width=WIDTH)
            browser.execute_script(HIDE)
            shot = Path(folder) / "report.png"
            screenshot(browser, shot, browser.execute_script(END) + 10)
        drawn = with_palette(shot)
    if len(drawn) > LARGEST:
        raise RuntimeError(f"it would have {len(drawn)} bytes, more than {LARGEST}")
    with command_line.replaced(file) as beside:
        beside.write_bytes(drawn)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "file",
        type=command_line.picture(".png"),
        nargs="?",
        default=str(ROOT / "golden" / "report.png"),
        help="where to write",
    )
    file = parser.parse_args(arguments).file
    try:
        draw(file)
    except RuntimeError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return 1
    print(f"{file}: {file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
