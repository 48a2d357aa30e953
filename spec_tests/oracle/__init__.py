"""The block in NumPy float64, with bounds for every number: the oracle of these tests.

    result = forward(config, state, x, training=True)     # result.y, result.stats
    gradients = vjp(result, dy)                           # gradients.dx, gradients.params
    verdict = judge(actual, result.y)                     # verdict.ok, verdict.describe()

A `Bounded` tensor holds values and bounds: every correct implementation in the declared arithmetic (`Arith`)
lies within. `Rules` holds every decision of the specification; the oracle runs under any. It needs NumPy only,
and can be read as a reference by the author of a port: start with `block`, then `conv`, `norm`, `activation`
and `upsample`.
"""

from spec_tests.oracle.block import Forward, Gradients, forward, vjp
from spec_tests.oracle.bounds import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT32_STRICT,
    FLOAT64,
    TF32,
    Arith,
    Bounded,
    NotApplicable,
)
from spec_tests.oracle.rules import SPEC, Rules, alternatives
from spec_tests.oracle.verdict import Verdict, judge, suspects

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "FLOAT32_STRICT",
    "FLOAT64",
    "SPEC",
    "TF32",
    "Arith",
    "Bounded",
    "Forward",
    "Gradients",
    "NotApplicable",
    "Rules",
    "Verdict",
    "alternatives",
    "forward",
    "judge",
    "suspects",
    "vjp",
]
