"""Which shards make one run, and what becomes of a file of known failures that each of them was held against."""

from __future__ import annotations

from pathlib import Path

import pytest

from spec_tests.cli import main
from spec_tests.report.files import write_all
from spec_tests.report.model import Report, merged
from spec_tests.verdict import Verdict


def test_shards_of_two_devices_are_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard without a test does not know its device, and goes with the others."""
    one, two, three, none = (
        Report(
            Verdict(subject={"arithmetic": "float32", **device} if device is not None else {}),
            "py:a:B",
            "smoke",
            shard=(n, 3),
        )
        for n, device in ((1, {"device": "cuda"}), (2, {"device": "cuda"}), (3, {}), (3, None))
    )
    assert [report.verdict.troubles for report in merged([none, one, two])] == [[]]
    [gpu, cpu] = merged([one, two, three])
    assert gpu.verdict.troubles == ["shard 3 of 3 is missing"]
    assert (gpu.device, cpu.device) == ("cuda", "cpu")
    for report in (one, two, three):
        write_all(
            tmp_path / report.device / str(report.shard[0] if report.shard else 0), {"report.json": report.dumps()}
        )
    assert main(["merge", *map(str, tmp_path.glob("*/*"))]) == 3
    words = "these are 2 runs and must be the shards of one: the same subject, profile, seed, clauses, device and"
    assert words in capsys.readouterr().err
    assert cpu.verdict.troubles == ["shard 1 of 3 is missing", "shard 2 of 3 is missing"]
