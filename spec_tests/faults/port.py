"""The NumPy port with one fault of the catalogue, as a port of its own: `python -m spec_tests.faults.port --fault ID`.

The port's files are read, the text that `port_patches` names is changed, and the result runs.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from spec_tests.faults.port_patches import PATCHES

PORT = Path(__file__).resolve().parents[1] / "ports" / "python"
# In the order in which they need each other.
MODULES = ("layers", "protocol", "numpy_port")


def patched(fault: str) -> dict[str, str]:
    """The source of each module of the port with a fault in it, or without any for "".

    Raises KeyError for another name, and ValueError for a patch that the port's text has outgrown.
    """
    sources = {name: (PORT / f"{name}.py").read_text(encoding="utf-8") for name in MODULES}
    # All places are found before any changes: two texts may be exchanged.
    marks = []
    for number, (module, old, new) in enumerate(PATCHES[fault] if fault else ()):
        if sources[module].count(old) != 1:
            raise ValueError(f"{fault}: {module}.py has {sources[module].count(old)} times, not once: {old}")
        mark = f"\0{number}\0"
        sources[module] = sources[module].replace(old, mark)
        marks.append((module, mark, new))
    for module, mark, new in marks:
        sources[module] = sources[module].replace(mark, new)
    return sources


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m spec_tests.faults.port", description=__doc__)
    parser.add_argument("--fault", choices=sorted(PATCHES), metavar="ID", help="one of: " + ", ".join(PATCHES))
    parser.add_argument("--list", action="store_true", help="print the ids, and leave")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(PATCHES))
        return
    if options.fault is None:
        parser.error("--fault is required; --list prints the ids")
    for name, source in patched(options.fault).items():
        module = types.ModuleType("__main__" if name == "numpy_port" else name)
        module.__file__ = f"{PORT / name}.py with {options.fault}"
        sys.modules[name] = module
        exec(compile(source, module.__file__, "exec"), module.__dict__)  # noqa: S102


if __name__ == "__main__":
    main()
