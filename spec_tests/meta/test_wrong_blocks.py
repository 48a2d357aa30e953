"""The verdict on wrong blocks: the expected clause is named, by a check and not by a crash."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from spec_tests.meta.processes import Ended, mdnc_spec, mdnc_spec_many

MODULES = {chapter: f"spec_tests.meta.{'wrong_blocks' if chapter < '6' else 'wrong_states'}" for chapter in "1235789"}
# The clause that must notice.
EXPECTED = {
    "StrideTwo": "1.1",
    "BatchNormal": "1.1",
    "OldOrder": "1.1",
    "ReluByDefault": "1.1",
    "AxesSwapped": "1.12",
    "ThreeNumbers": "1.13",
    "NoneIsNull": "1.15",
    "BoolIsInt": "1.15",
    "FloatTruncated": "1.15",
    "DecimalTruncated": "1.15",
    "KeepsTheList": "1.13",
    "AnyCase": "1.16",
    "PaddingClipped": "1.16",
    "UnknownNormIsBatch": "1.16",
    "OutputSizeDown": "1.19",
    "HiddenOut": "2.1",
    "BiasAlways": "2.5",
    "AlwaysProjects": "2.6",
    "ProjectsForChannelsOnly": "2.6",
    "UpsampleDropped": "2.8",
    "InstanceRunning": "2.14",
    "SharedSlope": "2.17",
    "FunctionalReLU": "2.18",
    "NamesShifted": "2.20",
    "CeilForFloor": "3.2",
    "Broadcast": "3.6",
    "Cropped": "3.6",
    "WrongError": "3.6",
    "OneElementNormalized": "3.11",
    "BatchOfOneTaken": "3.12",
    "RefusedTooLate": "3.13",
    "AddedInPlace": "5.9",
    "BuffersNotPersistent": "7.1",
    "FrozenSlope": "7.2",
    "Float64Counter": "7.3",
    "SlopeZero": "7.4",
    "ZeroLastScale": "7.5",
    "Glorot": "7.7",
    "NormalInit": "7.7",
    "TiedNorms": "7.8",
    "OwnSeed": "7.9",
    "SeedsAfterwards": "7.9",
    "ShiftedStream": "7.7",
    "TrainGivesNothing": "7.15",
    "CachedInEvaluation": "9.8",
    "ResetOnLoad": "7.10",
    "LoadNotStrict": "7.11",
    "CopyShares": "7.12",
    "ForgetsMode": "7.13",
    "CounterConverted": "7.14",
    "ModeIgnored": "7.15",
    "TrailingDropout": "8.1",
    "LeakyForRelu": "8.3",
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Every wrong block, judged by its expected clause alone, in one process."""
    runs = [
        ["run", "--subject", f"py:{MODULES[clause[0]]}:{name}", "--profile", "smoke", "--clause", clause]
        for name, clause in EXPECTED.items()
    ]
    found = mdnc_spec_many(runs, cwd=tmp_path_factory.mktemp("empty"))
    return dict(zip(EXPECTED, found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_wrong_block_is_caught(judged: dict[str, Ended], name: str) -> None:
    ended, clause = judged[name], EXPECTED[name]
    assert ended.status == 1, ended.out
    assert clause in ended.failures(), ended.out
    story = ended.failures()[clause]
    assert story["what"] != "a call that must succeed", f"noticed by a crash:\n{ended.out}"
    assert story["got"] != story["expected"]
    assert story["example"].startswith(("block = BlockBottleneck2d(", "# BlockBottleneck2d("))
    assert f"--clause {clause}" in story["replay"]
    assert "ERROR" not in ended.out
    broken = ended.out.rstrip().splitlines()[-1].partition("does not conform: broken ")[2].split(", ")
    assert clause in broken


def test_every_wrong_block_is_expected_to_be_caught() -> None:
    pytest.importorskip("torch")
    found = [cls for name in set(MODULES.values()) for cls in vars(importlib.import_module(name)).values()]
    classes = {cls for cls in found if isinstance(cls, type) and cls.__module__ in MODULES.values()}
    bases = {base for cls in classes for base in cls.__mro__[1:]}
    leaves = {cls.__name__ for cls in classes - bases if cls.__name__ not in ("ByHand", "Lenient")}
    # A campaign has to look for the last one.
    assert leaves - {"Correct", "RarelyWrong"} == set(EXPECTED)


@pytest.mark.slow
def test_a_correct_block_conforms(tmp_path: Path) -> None:
    """Nothing of what it does otherwise is demanded by a clause."""
    ended = mdnc_spec("run", "--subject", f"py:{MODULES['1']}:Correct", "--profile", "smoke", cwd=tmp_path)
    assert ended.status == 0, ended.out
    assert "FAILED" not in ended.out
    assert "ADVICE" not in ended.out
