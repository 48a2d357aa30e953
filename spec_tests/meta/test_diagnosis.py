"""The right mistake is named, never a wrong one, and nothing of a subject of which nothing is wrong."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from spec_tests.diagnosis import diagnose
from spec_tests.evidence import Evidence, examples, observe, within
from spec_tests.meta.processes import REFERENCE, mdnc_spec
from spec_tests.meta.rule_subject import RuleBlock, RuleSubject
from spec_tests.oracle import SPEC, TF32, Bounded, alternatives, forward, judge
from spec_tests.subjects import load_subject
from spec_tests.subjects.base import Array, Crashed, Gradients
from spec_tests.subjects.in_process import TorchSubject

SAMPLE = list(alternatives())[::11]
# Long enough for any machine: what is tested does not depend on the time that it takes.
SECONDS = 600.0


def test_of_a_right_subject_nothing_is_said() -> None:
    found = diagnose(RuleSubject(SPEC), SECONDS, first=16)
    assert found.healthy
    assert found.lines() == []
    assert found.total > 100


# One of eleven; `tools/kill_matrix.py --diagnosis` goes through all of them, as torch blocks and as ports.
@pytest.mark.parametrize(("name", "value", "rules"), SAMPLE, ids=[f"{name}={value}" for name, value, _ in SAMPLE])
def test_a_wrong_rule_is_named(name: str, value: Any, rules: Any) -> None:
    found = diagnose(RuleSubject(rules), SECONDS)
    assert [explanation.changes for explanation in found.explanations] == [((name, value),)]
    assert found.certain
    assert f"{name} = {value!r}" in found.lines()[0]
    assert found.explanations[0].complete
    assert 0 < found.wrong <= found.total
    assert found.runner_up is None or found.runner_up.inside < found.total


@pytest.mark.parametrize(
    "changes",
    [
        {"eps": 1e-3, "momentum": 0.01},
        {"slope_gradient": "batch_mean", "interpolation": "half_pixel"},
        # Beside the first, the second accounts for nothing in the examples that are looked at for ranking.
        {"kernel_channels": "hwio", "relu": "gelu"},
    ],
)
def test_two_wrong_rules_are_named(changes: dict[str, Any]) -> None:
    found = diagnose(RuleSubject(replace(SPEC, **changes)), SECONDS)
    assert [dict(explanation.changes) for explanation in found.explanations] == [changes]


class Odd(RuleBlock):
    """Wrong in a way that no rule has: a thousandth too much, in batches of three."""

    def forward(self, x: Array, training: bool | None = None) -> Array:
        y = super().forward(x, training)
        return y * np.float32(1.001) if len(x) == 3 else y


class Rare(RuleBlock):
    """Wrong by half of what coarse products explain, in batches of three."""

    def forward(self, x: Array, training: bool | None = None) -> Array:
        state = self.state()
        y = super().forward(x, training)
        coarse = forward(self.config, state, x, training=training is not False, arith=TF32).y
        return y + (coarse.bound / 2).astype(np.float32) if len(x) == 3 else y


class OddSubject(RuleSubject):
    block: type[RuleBlock] = Odd

    def build(self, *arguments: Any, **named: Any) -> RuleBlock:
        right = super().build(*arguments, **named)
        return self.block(right.config, right.rules)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("activation_gradient", "none_of_prelu"),
        ("evaluation_gradient", "formula"),
        ("kernel_channels", "ohwi"),
        ("kernel_gradient", "not_turned"),
        ("residual_gradient", "missing"),
        ("slope_gradient", "negated"),
    ],
)
def test_a_backward_pass_or_a_layout_that_ports_get_wrong_by_hand(rule: str, value: str) -> None:
    changed: dict[str, Any] = {rule: value}
    found = diagnose(RuleSubject(replace(SPEC, **changed)), SECONDS)
    assert found.certain
    assert found.explanations[0].changes == ((rule, value),)


class ByShortcut(RuleBlock):
    """One known mistake where the shortcut is an identity, and an unknown one where it is none."""

    def forward(self, x: Array, training: bool | None = None) -> Array:
        y = super().forward(x, training)
        return y * np.float32(1.01) if self.config.projects else y


class ByShortcutSubject(RuleSubject):
    def build(self, *arguments: Any, **named: Any) -> RuleBlock:
        config = super().build(*arguments, **named).config
        return ByShortcut(config, SPEC if config.projects else replace(SPEC, eps=1e-3))


def test_a_rule_that_says_nothing_of_a_wrong_example_does_not_explain_it() -> None:
    """With a slice for the projection no block can be run in which channels or sizes change: that is no evidence."""
    assert diagnose(ByShortcutSubject(SPEC), SECONDS).explanations == ()


def test_what_no_rule_explains_is_described() -> None:
    found = diagnose(OddSubject(SPEC), SECONDS)
    assert found.explanations == ()
    text = "\n".join(found.lines())
    assert "No known mistake" in text
    assert "Wrong only with batch size = 3." in text
    assert "behaves exactly like" not in text


class BatchOnly(RuleSubject):
    """The rules for batch norms, and the specification for everything else; in one mode, if that is given."""

    mode: bool | None = None

    def build(self, *arguments: Any, **named: Any) -> RuleBlock:
        block = super().build(*arguments, **named)
        if block.config.normalizer != "batch":
            return RuleBlock(block.config, SPEC)
        if self.mode is None:
            return block
        rules, mode = self.rules, self.mode

        class Either(RuleBlock):
            def _run(self, x: Array, training: bool | None) -> Any:
                self.rules = rules if training is mode else SPEC
                return super()._run(x, training)

        return Either(block.config, SPEC)


def test_a_rule_that_is_wrong_with_one_normalizer_alone_is_named() -> None:
    lines = diagnose(BatchOnly(replace(SPEC, eps=1e-3)), SECONDS).lines()
    assert lines[1:3] == [
        "Wrong only with normalizer = 'batch'.",
        "There, it behaves exactly like eps = 0.001 instead of 1e-05 (ε of every norm; Keras's default), clause 4.5.",
    ]


def test_a_rule_that_is_wrong_with_one_normalizer_in_one_mode_is_named() -> None:
    subject = BatchOnly(replace(SPEC, statistics_gradient="variance_detached"))
    subject.mode = True
    lines = diagnose(subject, SECONDS).lines()
    assert lines[1:3] == ["Wrong only with normalizer = 'batch'.", "Wrong only with training = True."]
    assert "There, it behaves exactly like statistics_gradient = 'variance_detached'" in lines[3]


def test_coarse_products_are_told_from_a_rare_mistake() -> None:
    """Both lie within the bounds of TF32; only what is wrong nearly everywhere is called so."""
    pytest.importorskip("torch")
    blocks = "py:spec_tests.faults.blocks"
    coarse = diagnose(load_subject(f"{blocks}:tf32_products"), SECONDS)
    assert coarse.coarse is not None
    assert (coarse.explanations, coarse.certain) == ((), False)
    first, second, _ = coarse.lines()
    assert (
        "like convolutions that round their factors to 10 bits, as TF32 and float16 have, and like no wrong rule."
        in first
    )
    assert f"{coarse.wrong} lie outside those of float32, in {coarse.coarse[0]} of 48 examples" in second
    subject = OddSubject(SPEC)
    subject.block = Rare
    seen = [observe(subject, numeric) for numeric in itertools.islice(examples(subject), 48)]
    assert not Evidence(seen, True, TF32).failing()
    rare = diagnose(subject, SECONDS)
    assert rare.coarse is None
    assert "No known mistake" in rare.lines()[0]


@pytest.mark.parametrize(("factor", "rounded"), [(1 + 1e-8, True), (1 + 1e-3, False)])
def test_what_is_wrong_in_float64_alone_is_told(factor: float, rounded: bool) -> None:
    torch = pytest.importorskip("torch")
    mdnc = pytest.importorskip("mdnc")

    class Block(mdnc.modules.resnet.BlockBottleneck2d):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            y = super().forward(x)
            return y * factor if y.dtype == torch.float64 else y

    found = diagnose(TorchSubject("a block", Block), SECONDS, first=12)
    assert found.double is not None
    assert (found.wrong, found.healthy, found.double[2]) == (0, False, rounded)
    first, *more = found.lines()
    assert re.fullmatch(r"All of .* in float32 are right; of \d+ in float64, \d+ lie outside their bounds\.", first)
    assert [line.partition(":")[0] for line in more] == ["All of these are as close as float32 comes"] * rounded


def test_a_block_that_narrows_float64_is_told_so() -> None:
    pytest.importorskip("torch")
    found = diagnose(load_subject("py:spec_tests.faults.blocks:float64_narrowed"), SECONDS)
    assert found.double is not None
    assert found.double[2]
    assert diagnose(load_subject(REFERENCE), SECONDS).healthy


class Apart(RuleBlock):
    """Its backward pass was written by hand, and has another ε."""

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        other = RuleBlock(self.config, replace(SPEC, eps=1e-6))
        other.load(self.state())
        return other.backward(x, dy, training)


def test_a_backward_pass_that_was_written_apart_hides_no_wrong_rule() -> None:
    subject = OddSubject(replace(SPEC, eps=1e-3))
    subject.block = Apart
    found = diagnose(subject, 2.0)
    assert found.forward
    assert [explanation.changes for explanation in found.explanations] == [(("eps", 1e-3),)]
    first, second, third, *_ = found.lines()
    assert first.startswith("Its gradients fit no rule that explains the rest")
    assert second.startswith("Without them, it behaves exactly like eps = 0.001 instead of 1e-05")
    assert re.match(r"Every one of \d+ outputs and statistics lies within its bounds under this rule; \d+ lie", third)


def test_what_explains_less_than_the_specification_is_no_next_best() -> None:
    found = diagnose(RuleSubject(replace(SPEC, momentum=0.01)), SECONDS)
    assert found.certain
    assert "The next best explanation" not in "\n".join(found.lines())


@pytest.mark.parametrize("bound", [0.0, 1.0, np.inf, np.nan])
def test_what_passes_is_what_the_verdict_lets_pass(bound: float) -> None:
    numbers = (0.0, 0.5, 5.0, np.inf, -np.inf, np.nan)
    for got, value in itertools.product(numbers, numbers):
        expected = Bounded(np.array([value]), np.array([bound]))
        assert within(np.array([got]), expected) == judge(np.array([got]), expected).ok, (got, value)


class Nan(RuleBlock):
    def forward(self, x: Array, training: bool | None = None) -> Array:
        return np.full_like(super().forward(x, training), np.nan)


class Infinite(RuleBlock):
    """In batches of three; in those of two, slightly too much."""

    def forward(self, x: Array, training: bool | None = None) -> Array:
        y = super().forward(x, training)
        return np.full_like(y, np.inf) if len(x) == 3 else y * np.float32(1.001) if len(x) == 2 else y


class Cropped(RuleBlock):
    def forward(self, x: Array, training: bool | None = None) -> Array:
        return super().forward(x, training)[..., :-1]


class NanGradient(RuleBlock):
    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        found = super().backward(x, dy, training)
        return Gradients(found.dx * np.float32(np.nan), found.params)


BLOCK = "BlockBottleneck2d(3, 3, normalizer='batch') in training"


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (Nan, f"The output is NaN everywhere, as with {BLOCK}: in 24 of 24 "),
        (Cropped, f"The output has the shape (3, 3, 4, 5) and must have (3, 3, 4, 6), as with {BLOCK}: in 24 of 24 "),
        (NanGradient, f"The gradient of the input is NaN everywhere, as with {BLOCK}: in 24 of 24 "),
    ],
)
def test_an_output_without_numbers_blames_no_layer(block: type[RuleBlock], sentence: str) -> None:
    subject = OddSubject(SPEC)
    subject.block = block
    found = diagnose(subject, SECONDS, first=24)
    assert found.explanations == ()
    assert found.where[-1] == f"{sentence}examples in which it is wrong, and that tells no layer."
    assert "leaves the bound" not in "\n".join(found.where)


def test_layers_are_told_from_numbers_alone() -> None:
    """Where some wrong examples have numbers, they are asked, and not those without."""
    subject = OddSubject(SPEC)
    subject.block = Infinite
    found = diagnose(subject, SECONDS, first=24)
    assert any(line.startswith("The output is finite nowhere, as with ") for line in found.where)
    assert "that tells no layer" in found.where[-3]
    assert "leaves the bound in the shortcut" in found.where[-2]


def test_nan_that_passes_zero_weights_blames_no_shortcut() -> None:
    class Spot(RuleBlock):
        def forward(self, x: Array, training: bool | None = None) -> Array:
            y = super().forward(x, training)
            y[0, 0, 0, 0] = np.nan
            return y

    subject = OddSubject(SPEC)
    subject.block = Spot
    found = diagnose(subject, SECONDS, first=8)
    assert found.where
    assert "shortcut" not in "\n".join(found.where)


class Unscaled(RuleBlock):
    """Slopes receive the cube of their gradient, of which no rule knows."""

    def backward(self, x: Array, dy: Array, training: bool | None = None) -> Gradients:
        found = super().backward(x, dy, training)
        slopes = {f"{layer.name}.weight" for layer in self.config.layers() if layer.kind == "act"}
        return Gradients(found.dx, {name: g**3 if name in slopes else g for name, g in found.params.items()})


def test_gradients_of_one_kind_of_parameter_are_told() -> None:
    subject = OddSubject(SPEC)
    subject.block = Unscaled
    found = diagnose(subject, 2.0, first=24)
    assert found.explanations == ()
    assert "Of parameters, only the gradients of slopes are wrong." in found.where
    # Where something else is wrong too, gradients are not all that there is to say.
    subject.block = NanGradient
    assert "Of parameters" not in "\n".join(diagnose(subject, 2.0, first=24).where)


class Remembers(Odd):
    """Its first answer is kept, and wrong for all that is asked later."""

    first: ClassVar[list[float]] = []

    def forward(self, x: Array, training: bool | None = None) -> Array:
        y = RuleBlock.forward(self, x, training)
        self.first.append(float(y.flat[0]))
        return np.asarray(y + np.float32(self.first[0]))


class RememberingSubject(OddSubject):
    block = Remembers

    def __init__(self, *, ends: bool) -> None:
        super().__init__(SPEC)
        self.ends = ends
        Remembers.first.clear()

    def restart(self) -> bool:
        if self.ends:
            Remembers.first[:] = [0.0]
        return self.ends


def test_what_depends_on_earlier_calls_is_told() -> None:
    """Three wrong examples are asked for again, of a process that was asked nothing before."""
    sentence = "3 of 3 wrong examples came right when asked again, in a fresh process: answers depend on earlier calls"
    found = diagnose(RememberingSubject(ends=True), SECONDS, first=16)
    assert f"{sentence}, or on chance." in found.where
    for subject in (RememberingSubject(ends=False), OddSubject(SPEC)):
        found = diagnose(subject, SECONDS, first=16)
        assert found.wrong
        assert not any("asked again" in line for line in found.where)


class Crashing(RuleBlock):
    def backward(self, *_: Any, **__: Any) -> Any:
        raise Crashed("boom", "a call")


def test_calls_that_fail_are_told() -> None:
    subject = OddSubject(SPEC)
    subject.block = Crashing
    found = diagnose(subject, SECONDS, first=8)
    assert not found.healthy
    assert "boom" in found.lines()[0]
    assert "behaves exactly like" not in "\n".join(found.lines())


def test_the_command(tmp_path: Path) -> None:
    right = mdnc_spec("diagnose", "--subject", REFERENCE, cwd=tmp_path)
    assert right.status == 0
    held = r"\d+ outputs, gradients and statistics of the diagnosis' own examples lie within their bounds"
    assert re.fullmatch(f"{held}; that is no verdict: mdnc-spec run judges every clause\n", right.out)
    (tmp_path / "blocks.py").write_text(
        "import mdnc\n"
        "class Eps(mdnc.modules.resnet.BlockBottleneck2d):\n"
        "    def __init__(self, *arguments, **named):\n"
        "        super().__init__(*arguments, **named)\n"
        "        for layer in self.modules():\n"
        "            if hasattr(layer, 'eps'):\n"
        "                layer.eps = 1e-3\n",
        encoding="utf-8",
    )
    wrong = mdnc_spec("diagnose", "--subject", "py:blocks:Eps", cwd=tmp_path)
    assert wrong.status == 1
    sentence = "It behaves exactly like eps = 0.001 instead of 1e-05 (ε of every norm; Keras's default), clause 4.5."
    assert sentence in wrong.out
    run = ("run", "--subject", "py:blocks:Eps", "--clause", "4.5", "--profile", "smoke")
    ended = mdnc_spec(*run, cwd=tmp_path)
    assert ended.status == 1
    assert "DIAGNOSIS" in ended.out
    assert sentence in ended.out
    assert "DIAGNOSIS" not in mdnc_spec(*run, "--no-diagnosis", cwd=tmp_path).out


def test_what_its_own_examples_do_not_show(tmp_path: Path) -> None:
    """A subject is not acquitted, and a run that fails says that the diagnosis found nothing."""
    (tmp_path / "blocks.py").write_text(
        "import mdnc\n"
        "class Planes(mdnc.modules.resnet.BlockBottleneck2d):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        "        return y if x.shape[1] in (2, 3) else y * 1.01\n",
        encoding="utf-8",
    )
    ended = mdnc_spec("diagnose", "--subject", "py:blocks:Planes", cwd=tmp_path)
    assert (ended.status, "no verdict" in ended.out) == (0, True), ended.out
    run = ("run", "--subject", "py:blocks:Planes", "--clause", "4.1", "--profile", "smoke", "--report", "r")
    ended = mdnc_spec(*run, cwd=tmp_path)
    assert ended.status == 1, ended.out
    # How many examples are asked for depends on the time that they take.
    line = r"No known mistake explains it: \d+ outputs, gradients and statistics of the diagnosis' own examples lie"
    assert re.search(rf"DIAGNOSIS\n    {line}", ended.out), ended.out
    assert re.search(line, (tmp_path / "r" / "report.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("seconds", ["0", "soon", "nan"])
def test_wrong_seconds_are_refused(tmp_path: Path, seconds: str) -> None:
    ended = mdnc_spec("diagnose", "--subject", REFERENCE, "--seconds", seconds, cwd=tmp_path)
    assert ended.status == 3
    assert repr(seconds) in ended.err
