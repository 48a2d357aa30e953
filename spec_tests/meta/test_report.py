"""The files of a report: what they hold, that they are whole, and that they are the same again."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from spec_tests.clauses import all_clauses
from spec_tests.meta.processes import REFERENCE, ROOT, Ended, environment, mdnc_spec, mdnc_spec_many, run_arguments
from spec_tests.report import files
from spec_tests.report.model import SCHEMA_FILE, Report, read
from spec_tests.verdict import TestOutcome as Outcome

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("torch")

NAMES = {"report.json", "report.html", "report.md", "junit.xml", "badge.json"}
WRONG = "py:spec_tests.meta.wrong_blocks:AlwaysProjects"
NUMBERS = "py:spec_tests.faults.blocks:eps_1e3_everywhere"
HONEST = [sys.executable, str(ROOT / "spec_tests" / "meta" / "honest_port.py")]
PORT = f"cmd:{shlex.join(HONEST)} --ops describe,forward --modes eval"
RUNS = {
    "structure": run_arguments(WRONG, "--clause", "2", "--clause", "7.1"),
    "numbers": run_arguments(NUMBERS, "--clause", "4.5", "--clause", "6.1", "--no-diagnosis"),
    "diagnosed": run_arguments(NUMBERS, "--clause", "4.5", "--clause", "4.7"),
    "passing": run_arguments(REFERENCE, "--clause", "2.23", "--clause", "4.2"),
    "partial": run_arguments(f"{PORT} --dtypes F32", "--clause", "2.23", "--clause", "4.7", "--clause", "5.1"),
    "again": run_arguments(NUMBERS, "--clause", "4.5", "--clause", "6.1", "--no-diagnosis"),
}
STATUS = {"structure": 1, "numbers": 1, "diagnosed": 1, "passing": 0, "partial": 2, "again": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of each of the runs."""
    top = tmp_path_factory.mktemp("reports")
    ended = mdnc_spec_many([[*run, "--report", name] for name, run in RUNS.items()], cwd=top)
    assert [e.status for e in ended] == list(STATUS.values()), ended
    for one, name in zip(ended, RUNS, strict=True):
        assert one.out.rstrip().endswith(f"report: {top / name / 'report.html'}")
    return top


def loaded(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def whole(folder: Path) -> dict[str, Any]:
    """All files are there and whole, and nothing else; return the JSON."""
    assert {path.name for path in folder.iterdir()} == NAMES
    data = loaded(folder)
    jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))).validate(data)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.endswith("</html>\n")
    assert ET.parse(folder / "junit.xml").getroot().tag == "testsuites"
    assert "<sub>" in (folder / "report.md").read_text(encoding="utf-8").splitlines()[-1]
    json.loads((folder / "badge.json").read_text(encoding="utf-8"))
    return data


# ------------------------------------------------------------------ what they hold


def test_the_schema_is_one() -> None:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == "urn:mdnc-spec:report:1"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_files(folder: Path, name: str) -> None:
    data = whole(folder / name)
    assert data["exit_status"] == STATUS[name]
    assert data["shard"] is None
    assert set(data["clause_results"]) == set(all_clauses())
    badge = json.loads((folder / name / "badge.json").read_text(encoding="utf-8"))
    assert badge == {
        "schemaVersion": 1,
        "label": "mdnc-spec",
        "message": data["verdict"],
        "color": ["brightgreen", "red", "yellow"][STATUS[name]],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_json_and_back(folder: Path, name: str) -> None:
    report = read(folder / name)
    assert isinstance(report, Report)
    assert json.loads(report.dumps()) == loaded(folder / name)


@pytest.mark.slow
def test_the_same_again(folder: Path) -> None:
    """Ids, causes and outcomes of a second run are those of the first."""
    one, two = loaded(folder / "numbers"), loaded(folder / "again")
    assert one["causes"] == two["causes"]
    assert one["causes"]
    for outcome in (*one["outcomes"], *two["outcomes"]):
        del outcome["seconds"]
    assert one["outcomes"] == two["outcomes"]
    ids = [outcome["id"] for outcome in one["outcomes"]]
    assert len(set(ids)) == len({outcome["test"] for outcome in one["outcomes"]})


@pytest.mark.slow
def test_workers_carry_the_pictures(folder: Path, tmp_path: Path) -> None:
    ended = mdnc_spec(*RUNS["numbers"], "-n", "2", "--report", "r", cwd=tmp_path)
    assert ended.status == 1, ended.out + ended.err
    one, two = loaded(folder / "numbers"), loaded(tmp_path / "r")
    assert one["about"] == two["about"]
    assert one["about"]["arithmetic"] == "float32"
    failures = [[o["failure"] for o in data["outcomes"] if o["failure"]] for data in (one, two)]
    assert failures[0] == failures[1]
    assert all(failure["picture"]["maps"] for failure in failures[0] if failure["clause"] == "4.5")


@pytest.mark.slow
def test_a_known_mistake_is_in_all_of_them(folder: Path) -> None:
    """The diagnosis, and the layers that it accuses."""
    data = loaded(folder / "diagnosed")
    assert data["diagnosis"]["certain"]
    assert data["diagnosis"]["changes"] == [{"rule": "eps", "value": 0.001}]
    assert [cause["clause"] for cause in data["causes"]] == ["4.5"]
    for name in ("report.html", "report.md"):
        text = (folder / "diagnosed" / name).read_text(encoding="utf-8")
        assert "It behaves exactly like eps = 0.001 instead of 1e-05" in text
        assert "mdnc-spec run --subject" in text
    assert 'class="guilty"' in (folder / "diagnosed" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_markdown_and_junit_hold_every_broken_clause(folder: Path, name: str) -> None:
    data = loaded(folder / name)
    broken = {clause for clause, result in data["clause_results"].items() if result["status"] == "failed"}
    text = (folder / name / "report.md").read_text(encoding="utf-8")
    assert all(re.search(rf"(?<![\d.]){re.escape(clause)}(?![\d.])", text) for clause in broken)
    root = ET.parse(folder / name / "junit.xml").getroot()
    cases = list(root.iter("testcase"))
    assert len(cases) == int(root.get("tests", "")) == len(data["outcomes"])
    failed = [o for o in data["outcomes"] if o["status"] == "failed"]
    assert len(list(root.iter("failure"))) == int(root.get("failures", "")) == len(failed)
    told = {failure.get("message", "").split()[1].rstrip(":") for failure in root.iter("failure")}
    assert told == broken


class Links(HTMLParser):
    """Every address that a page names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
                self.found.append((tag, name, value or ""))
            if name == "id":
                assert value not in self.ids, f"the id {value} twice"
                self.ids.add(value or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_page_needs_nothing_else(folder: Path, name: str) -> None:
    file = folder / name / "report.html"
    assert file.stat().st_size < 1_000_000
    page = file.read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    for tag, _, address in links.found:
        assert address.startswith("#") or (tag, address) == ("link", "data:,"), (tag, address)
        if tag == "a":
            assert address[1:] in links.ids, f"{address} leads nowhere"
    assert not re.search(r"@import|url\(", page)
    for clause in all_clauses():
        assert f"c-{clause}" in links.ids


# ------------------------------------------------------------------ what goes wrong


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_an_unwritable_folder(tmp_path: Path) -> None:
    """The verdict is told, the error is clear, and the status is that of the verdict, or 3 for one of 0."""
    runs = [[*RUNS["passing"], "--report", "/proc/nowhere/r"], [*RUNS["structure"], "--report", "/proc/nowhere/r"]]
    good, bad = mdnc_spec_many(runs, cwd=tmp_path)
    assert "conforms: 2 clauses hold" in good.out
    assert "does not conform: broken 2.6" in bad.out
    for ended in (good, bad):
        before, after = ended.err.splitlines()
        assert before.startswith("mdnc-spec run: --report /proc/nowhere/r cannot be written to: [Errno 2] ")
        assert after.startswith("mdnc-spec: the report could not be written to /proc/nowhere/r: [Errno 2] ")
    assert (good.status, bad.status) == (3, 1)


@pytest.mark.parametrize("word", ["run", "matrix", "merge"])
def test_a_file_in_the_place_of_the_folder(word: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    rest = ["--subject", REFERENCE] if word == "run" else ["x"]
    ended = mdnc_spec(word, *rest, "--report", "file", cwd=tmp_path)
    assert ended.status == 3
    assert "argument --report: 'file' must be a folder, or the name of a new one" in ended.err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_all(tmp_path, {"a": "old a", "b": "old b"})
    turns = iter([None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])

    def full(_: int) -> None:
        error = next(turns)
        if error is not None:
            raise error

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_all(tmp_path, {"a": "new a", "b": "new b"})
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    words = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *words], capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full(full: Path, tmp_path: Path) -> None:
    """Old reports stay whole; the verdict reaches the terminal."""
    (full / "r").mkdir()
    (full / "r" / "report.html").write_text("old", encoding="utf-8")
    runs = [[*RUNS[name], "--report", str(full / "r")] for name in ("passing", "structure")]
    good, bad = mdnc_spec_many(runs, cwd=tmp_path)
    assert "conforms: 2 clauses hold" in good.out
    assert "does not conform: broken 2.6" in bad.out
    for ended in (good, bad):
        told = f"mdnc-spec: the report could not be written to {full / 'r'}: [Errno 28] No space left on device"
        assert ended.err.strip() == told
    assert (good.status, bad.status) == (3, 1)
    assert {path.name: path.read_text(encoding="utf-8") for path in (full / "r").iterdir()} == {"report.html": "old"}


SLOW = """
import os, time
from pathlib import Path
from mdnc.modules.resnet import BlockBottleneck2d

class Slow(BlockBottleneck2d):
    def __init__(self, in_planes, out_planes, *rest, **named):
        super().__init__(in_planes, out_planes, *rest, **({"activator": "relu"} | named))
        folder = Path(os.environ["MDNC_STARTED"])
        if len(list(folder.iterdir())) > 35:
            time.sleep(0.5)
        (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
"""


def stopped(number: signal.Signals, folder: Path) -> Ended:
    """A run with a report that gets a signal in its midst."""
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    started = folder / "started"
    started.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "spec_tests", *run_arguments("py:slow:Slow", "--clause", "1", "--report", "r")],
        cwd=folder,
        env=environment(MDNC_STARTED=str(started)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while len(list(started.iterdir())) < 40 and time.monotonic() < end and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_reports_what_it_found(number: signal.Signals, tmp_path: Path) -> None:
    ended = stopped(number, tmp_path)
    assert ended.status == 130, ended.out + ended.err
    assert "Traceback" not in ended.err
    data = whole(tmp_path / "r")
    assert data["interrupted"]
    assert data["exit_status"] == 130
    assert data["verdict"] == "interrupted"
    assert data["clause_results"]["1.1"]["status"] == "failed"
    assert Outcome.from_json({k: v for k, v in data["outcomes"][0].items() if k != "id"}).clauses


# ------------------------------------------------------------------ several reports


def parts(folder: Path, name: str, number: int) -> Iterator[Path]:
    """The report of a run as if it had been made in shards."""
    data = loaded(folder / name)
    for n in range(number):
        shard = {**data, "shard": {"number": n + 1, "of": number}, "outcomes": data["outcomes"][n::number]}
        where = folder / f"{name}-{n + 1}-of-{number}"
        where.mkdir(exist_ok=True)
        (where / "report.json").write_text(json.dumps(shard), encoding="utf-8")
        yield where


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numbers", "partial", "passing"])
def test_shards_make_the_verdict_of_the_whole(folder: Path, name: str, tmp_path: Path) -> None:
    shards = list(parts(folder, name, 3))
    ended = mdnc_spec("merge", *map(str, shards), "--report", "whole", cwd=tmp_path)
    assert ended.status == STATUS[name], ended.out + ended.err
    data, whole_one = whole(tmp_path / "whole"), loaded(folder / name)
    for key in ("clause_results", "chapters", "causes", "verdict", "summary", "outcomes", "shard", "subject"):
        assert data[key] == whole_one[key], key
    assert whole_one["summary"] in ended.out

    missing = mdnc_spec("merge", *map(str, shards[:2]), cwd=tmp_path)
    assert "ERROR shard 3 of 3 is missing" in missing.out
    assert missing.status == (1 if name == "numbers" else 3)
    assert "shard 3 of 3 is missing" in mdnc_spec("matrix", *map(str, shards[:2]), cwd=tmp_path).out
    twice = mdnc_spec("merge", *map(str, [*shards, shards[0]]), cwd=tmp_path)
    assert "ERROR shard 1 of 3 is there 2 times" in twice.out


@pytest.mark.slow
def test_the_matrix(folder: Path, tmp_path: Path) -> None:
    """A row a subject; all shards of one run are one row."""
    given = [folder / "passing", folder / "partial" / "report.json", *parts(folder, "numbers", 2)]
    ended = mdnc_spec("matrix", *map(str, given), "--report", "m", cwd=tmp_path)
    assert ended.status == 1, ended.err
    rows = [line for line in ended.out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {row.count("|") for row in rows} == {12}
    assert [row.split("|")[-2].strip() for row in rows[2:]] == ["conforms", "partial", "does not conform"]
    assert "✗ 0/1" in rows[-1]
    assert (tmp_path / "m" / "matrix.md").read_text(encoding="utf-8").strip() == ended.out.strip()
    page = (tmp_path / "m" / "matrix.html").read_text(encoding="utf-8")
    assert page.count('<th scope="row">') == 3
    assert not re.search(r"(src|href)=\"(?!data:,)", page)
    assert mdnc_spec("matrix", str(folder / "partial"), cwd=tmp_path).status == 2
    assert mdnc_spec("matrix", str(folder / "passing"), cwd=tmp_path).status == 0


@pytest.mark.slow
def test_what_cannot_be_merged(folder: Path, tmp_path: Path) -> None:
    ended = mdnc_spec("merge", str(folder / "passing"), str(folder / "numbers"), cwd=tmp_path)
    assert ended.status == 3
    assert "these are 2 runs and must be the shards of one" in ended.err
    (tmp_path / "report.json").write_text('{"schema": 7}', encoding="utf-8")
    for word in ("merge", "matrix"):
        ended = mdnc_spec(word, ".", cwd=tmp_path)
        assert ended.status == 3
        assert "report.json is no report of mdnc-spec: ValueError: schema 7, this version reads 1" in ended.err
        ended = mdnc_spec(word, "nowhere", cwd=tmp_path)
        assert ended.status == 3
        assert "nowhere cannot be read" in ended.err


def test_a_wrong_gradient_is_one_cause(tmp_path: Path) -> None:
    """In the words that the chapters use: outputs are right, and no diagnosis explains it."""
    subject = "py:spec_tests.faults.blocks:slope_gradient_negated"
    ended = mdnc_spec(*run_arguments(subject, "--clause", "5", "--clause", "9.8", "--no-diagnosis"), cwd=tmp_path)
    assert list(ended.failures()) == ["5.2"]
    assert "another wrong gradient, perhaps of the same cause:" in ended.out
    for clause in ("5.5", "5.10", "9.8"):
        assert re.search(rf"^ +{re.escape(clause)} the gradient of ", ended.out, re.MULTILINE), ended.out
