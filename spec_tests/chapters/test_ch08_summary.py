"""Chapter 8: the summary, computed twice, and compared with the recorded tables."""

from __future__ import annotations

from itertools import zip_longest

import pytest

from spec_tests.compare import Example, Thin, equal
from spec_tests.config import BlockConfig
from spec_tests.enumeration import DOCUMENTED, INPUT_SIZE, enumerated
from spec_tests.golden_data import documented_table, summary_index, summary_table
from spec_tests.marks import by_activator, by_documented, by_norm
from spec_tests.subjects.base import Subject
from spec_tests.summary import table

pytestmark = pytest.mark.needs("summary")
Row = tuple[str, str, str]


def parse(text: str) -> tuple[list[Row], list[str], list[str]]:
    """Rows (type, output shape, number of parameters), totals and sizes of a table."""
    rows, totals, sizes = [], [], []
    for line in text.splitlines():
        kind, bracket, rest = line.partition("[")
        if bracket:
            shape, _, count = rest.partition("]")
            rows.append((kind.strip(), f"[{shape}]", count.strip()))
        elif "params:" in line:
            totals.append(line.strip())
        elif "(MB)" in line:
            sizes.append(line.strip())
    return rows, totals, sizes


def judge_table(got: str, expected: str, example: Example, source: str) -> None:
    """Compare two tables from the coarse to the fine, so that the message names what differs."""
    (rows, totals, sizes), (due, due_totals, due_sizes) = parse(got), parse(expected)
    equal("8.1", f"number of rows of {source}", len(rows), len(due), example)
    for (kind, shape, count), (due_kind, due_shape, due_count) in zip(rows, due, strict=True):
        clause = "8.4" if due_kind.startswith("BlockBottleneck2d") else "8.2"
        equal("8.3", f"layer {due_kind} of {source}", kind, due_kind, example)
        equal("8.2", f"output shape of {due_kind} of {source}", shape, due_shape, example)
        equal(clause, f"parameters of {due_kind} of {source}", count, due_count, example)
    equal("8.5", f"totals of {source}", totals, due_totals, example)
    equal("8.6", f"sizes of {source}", sizes, due_sizes, example)
    judge_text("8.2", got, expected, example, source)


def judge_text(clause: str, got: str, expected: str, example: Example, source: str) -> None:
    """Compare two tables character by character; what is told is the first line that differs."""
    lines = enumerate(zip_longest(got.splitlines(), expected.splitlines(), fillvalue="no such line"), 1)
    number, (one, other) = next(((n, pair) for n, pair in lines if pair[0] != pair[1]), (0, ("", "")))
    if number:
        equal(clause, f"line {number} of {source}", one, other, example)
    equal(clause, f"characters of {source}", got, expected, example)


@pytest.mark.clause("8.1", "8.2", "8.3", "8.4", "8.5", "8.6")
@by_activator
@by_norm
def test_every_table(subject: Subject, thin: Thin, normalizer: str, activator: str) -> None:
    """The table of the subject, the table computed from the arguments, and the recorded one are the same."""
    for case, config in thin(enumerated(normalizer=normalizer, activator=activator)):
        size = (config.in_planes, *INPUT_SIZE)
        recorded, example = summary_table(case), Example.of(config, (2, *size))
        judge_table(table(config, size), recorded, example, "the table computed from the arguments")
        judge_table(subject.build(config.arguments()).summary(size), recorded, example, "the subject's table")
        row = summary_index()[case]
        equal("8.5", "parameters in the index", int(row["parameters"]), config.parameter_count(), example)
        shape = config.output_shape((1, *size))[1:]
        equal("8.2", "output in the index", row["output"], "x".join(map(str, shape)), example)


@pytest.mark.clause("8.7")
@by_documented
def test_documented_tables(subject: Subject, example_id: str) -> None:
    """The two documented tables are reproduced character by character."""
    config, size, _ = DOCUMENTED[example_id]
    expected, example = documented_table(example_id), Example.of(config, (2, *size))
    judge_text("8.7", table(config, size), expected, example, "the table computed from the arguments")
    block = subject.build(config.arguments())
    for training in (True, False):
        block.set_mode(training)
        judge_text("8.7", block.summary(size), expected, example, "the subject's table")


@pytest.mark.clause("8.2")
def test_thousands(subject: Subject) -> None:
    """A large block has commas in its numbers, and a table as wide as the documented one."""
    config = BlockConfig.of(128, 160, normalizer="batch", layer_order="old", kernel_size=(5, 3), padding=(2, 1))
    size = (128, 2, 3)
    got = subject.build(config.arguments()).summary(size)
    judge_text("8.2", got, table(config, size), Example.of(config, (2, *size)), "the subject's table")
