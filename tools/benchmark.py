"""Measurements of this project, each a subcommand; `python tools/benchmark.py --help` lists them.

reference: what the reference block costs, in time and in memory, beyond the work that it describes.
ports: what the pipe costs, beside the same NumPy block in this process.
scale: how the cost of a run grows, and where its time goes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Small tensors: more threads than one only wait for each other. Read when NumPy and torch are imported.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from spec_tests import chapter_run

chapter_run.one_thread()

from tools import command_line  # noqa: E402 -- the threads come first


def run_reference(options: argparse.Namespace) -> int:
    if options.device:
        if options.rounds or options.control:
            print("--rounds and --control are not for --device, which times in another way", file=sys.stderr)
            return 2
        from tools import benchmark_device

        return benchmark_device.run(options)
    from tools import benchmark_reference

    return benchmark_reference.run(options)


def run_ports(options: argparse.Namespace) -> int:
    from tools import benchmark_ports

    return benchmark_ports.run(options)


def run_scale(options: argparse.Namespace) -> int:
    from tools import benchmark_scale

    return benchmark_scale.run(options)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python tools/benchmark.py", description="Measure this project. Each subcommand prints tables and judges."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    reference = commands.add_parser(
        "reference",
        help="time and memory of the reference block against the bare computation",
        description=(
            "Compare mdnc.modules.resnet.BlockBottleneck2d with the same chain of torch.nn.functional calls, written "
            "out by hand and fed the same parameters. Runs are paired and take turns in going first; the median of "
            "the ratios must not exceed 1.03 for any configuration; those of a batch of 1 show the fixed cost of "
            "calling modules and are not judged. Then compare the peak memory of a training step with that of an "
            "addition in place: at most one output more."
        ),
        epilog=(
            "exit status: 0 within every bar, 1 not, 2 wrong usage. A ratio near the bar with wide quartiles is noise: "
            "leave the machine alone, raise --rounds, or see with --control what the machine can resolve."
        ),
    )
    reference.add_argument("--quick", action="store_true", help="15 short rounds: a look, not a verdict")
    reference.add_argument("--rounds", type=whole, metavar="N", help="pairs for each ratio (default 40, quick 15)")
    reference.add_argument("--threads", type=whole, default=1, metavar="N", help="threads of torch (default 1)")
    reference.add_argument("--match", metavar="TEXT", help="only the configurations whose name contains TEXT")
    reference.add_argument("--control", action="store_true", help="time the chain against itself: the noise")
    reference.add_argument(
        "--device",
        metavar="DEVICE",
        help="instead, compare eager, channels_last and compiled on this device (cpu, cuda, cuda:1), in values too",
    )
    reference.set_defaults(run=run_reference)
    ports = commands.add_parser(
        "ports",
        help="the cost of the pipe, against the same NumPy block in this process",
        description=(
            "Judge the same examples twice, side by side: by the NumPy port behind a pipe, and by its functions "
            "called in this process. The ratio of the times must not exceed 1.5. A judged example is the call with "
            "the oracle and the comparison, as in a run; the bare call is shown too, and is not judged."
        ),
        epilog="exit status: 0 within the bar, 1 not, 2 wrong usage",
    )
    ports.add_argument("--rounds", type=whole, default=20, metavar="N", help="pairs for each ratio (default 20)")
    ports.set_defaults(run=run_ports)
    scale = commands.add_parser(
        "scale",
        help="how the cost of a run grows, and where its time goes",
        description=(
            "Fit the exponent of the time over the number of examples, the size of the tensors, the work of more "
            "channels and the number of clauses: about 1, never above 1.1. Sample where the time of a whole default "
            "run goes, for the reference and for the NumPy port: the suite's own share is at most half for the "
            "reference. Time two workers against one process: at least 1.85 on two cores. Takes about ten minutes "
            "on a machine that does nothing else."
        ),
        epilog="exit status: 0 within every bar, 1 not, 2 wrong usage",
    )
    scale.add_argument("--quick", action="store_true", help="smaller sizes, the smoke profile, no workers: a look")
    scale.add_argument(
        "--picture",
        type=command_line.picture(".png", ".svg"),
        metavar="FILE",
        help="draw both tables (needs matplotlib)",
    )
    scale.set_defaults(run=run_scale)
    return top


def whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    result: int = options.run(options)
    return result


if __name__ == "__main__":
    sys.exit(command_line.ended(main))
