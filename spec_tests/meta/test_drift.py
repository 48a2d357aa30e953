"""The tool that shows what moves between two environments."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from spec_tests.meta.processes import ROOT, Ended, environment, loaded, python

TOOL = str(ROOT / "tools" / "drift.py")


def tool(folder: Path, *arguments: str) -> Ended:
    return python(TOOL, *arguments, cwd=folder, env=environment(OMP_NUM_THREADS="1", COLUMNS="160"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    ended = tool(folder, "record", "here.safetensors")
    assert ended.status == 0, ended.err
    return folder / "here.safetensors"


def changed(path: Path, name: str, factor: float, text: tuple[str, str] = ("", "")) -> Path:
    """A copy of a record in which one tensor and one text are others."""
    with safe_open(path, "numpy") as file:
        tensors = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
        metadata = {key: value.replace(*text) if text[0] else value for key, value in file.metadata().items()}
    found = next(key for key in tensors if key.endswith(name))
    tensors[found] = (tensors[found] * factor).astype(tensors[found].dtype)
    moved = path.with_name(f"{name.strip('/')}-{factor}-{len(text[0])}.safetensors")
    save_file(tensors, moved, metadata)
    return moved


def test_nothing_moves_within_an_environment(recorded: Path) -> None:
    ended = tool(recorded.parent, "compare", f"{recorded},{recorded}", str(recorded))
    assert ended.status == 0, ended.err
    assert "tables: 0 of 241 moved" in ended.out or "tables: 0 of " in ended.out
    assert "all that moved lies within the bounds" in ended.out
    assert "take 1.00 × as long" in ended.out


def test_the_last_bit_is_shown_and_explained(recorded: Path) -> None:
    ended = tool(recorded.parent, "compare", str(recorded), str(changed(recorded, "/y", 1 + 2**-23)))
    assert ended.status == 0, ended.out
    row = next(line for line in ended.out.splitlines() if "outputs" in line)
    assert [cell.strip() for cell in row.split("│")][3] != "0"


@pytest.mark.parametrize(
    ("name", "factor", "text", "words"),
    [
        ("/y", 1.01, ("", ""), "outputs"),
        ("/dx", -1.0, ("", ""), "gradients of the input"),
        ("/dx", float("nan"), ("", ""), "gradients of the input"),
        ("/dx", 1.0, ("Total params", "Total numbers"), "+Total numbers"),
        ("/dx", 1.0, ("conv2.", "middle."), "entries of the state (names, shapes, types): 66 of 66 moved"),
    ],
)
def test_what_moves_beyond_is_told(recorded: Path, name: str, factor: float, text: tuple[str, str], words: str) -> None:
    ended = tool(recorded.parent, "compare", str(recorded), str(changed(recorded, name, factor, text)))
    assert ended.status == 1, ended.out
    assert words in ended.out
    assert "something moved beyond what rounding explains" in ended.out


def test_two_builds_are_told(recorded: Path) -> None:
    """A processor and a GPU differ beside the version."""
    with safe_open(recorded, "numpy") as file:
        build = re.search(r"\+\w+", "".join(file.metadata().values()))
    if build is None:
        pytest.skip("this torch does not name its build")
    moved = changed(recorded, "/y", 1 + 2**-23, (build[0], "+other"))
    ended = tool(recorded.parent, "compare", str(recorded), str(moved))
    assert f"torch is of two builds, {build[0][1:]} and other" in ended.out
    assert "two builds" not in tool(recorded.parent, "compare", str(recorded), str(recorded)).out


def test_a_block_that_cannot_run_the_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with loaded(Path(TOOL)) as module:
        monkeypatch.setattr(module, "REFERENCE", "py:spec_tests.faults.blocks:bias_always")
        with pytest.raises(SystemExit) as caught:
            module.main(["record", str(tmp_path / "record.safetensors")])
    assert caught.value.code == 2
    assert "the block cannot run the test vectors, and `mdnc-spec run` says why: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("no record", encoding="utf-8")
    ended = tool(tmp_path, "compare", "other.txt", "missing")
    assert ended.status == 2
    assert "other.txt is no record" in ended.err
