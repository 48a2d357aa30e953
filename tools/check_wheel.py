"""Check what a wheel of this project holds: both packages, the golden data, and nothing else on top level.

    python tools/check_wheel.py dist/mdnc_spec-*.whl

Exit status: 0 as it must be, 1 not, 2 if it is no wheel.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import command_line

ROOT = Path(__file__).resolve().parent.parent


# What builds and runs leave beside the sources.
MADE = {"__pycache__", ".pyc", "node_modules", "target", "build"}


def problems(names: set[str]) -> list[str]:
    """What is missing from, or too much in, a wheel of these files."""
    sources = [p for package in ("mdnc", "spec_tests") for p in (ROOT / package).rglob("*") if p.is_file()]
    due = {p.relative_to(ROOT).as_posix() for p in sources if not MADE & {*p.parts, p.suffix}}
    golden = [p for p in (ROOT / "golden").rglob("*") if p.is_file()]
    due |= {"spec_tests/_golden/" + p.relative_to(ROOT / "golden").as_posix() for p in golden}
    found = [f"missing {name}" for name in sorted(due - names)]
    tops = {name.split("/")[0] for name in names}
    return found + [
        f"unwanted {top}" for top in sorted(tops) if top not in ("mdnc", "spec_tests") and ".dist-info" not in top
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="path of the wheel")
    wheel = parser.parse_args(arguments).wheel
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        parser.error(f"wheel {wheel} cannot be read: {error}")
    found = problems(names)
    print("\n".join(found) or f"{wheel.name}: {len(names)} files, as they must be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
