"""The maintainer's sessions: `nox -l` is the menu, `nox` runs what every change must pass."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.reuse_venv = "yes"
# uv would not see a CPU build of torch that pip is set up to find.
nox.options.default_venv_backend = "virtualenv"
# Python compiles what it imports; pip would take longer to compile all of torch than to fetch it.
os.environ.setdefault("PIP_COMPILE", "0")

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
REFERENCE = "py:mdnc.modules.resnet:BlockBottleneck2d"
# Pinned and installed first, so that no later requirement replaces it by a newer or a larger build.
TORCH = ("torch==2.13.0", "torchsummary==1.5.1")
SOURCES = ("mdnc", "spec_tests", "tools", "noxfile.py")
# One thread for each worker of pytest-xdist.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def install(session: nox.Session, *groups: str, torch: bool = True) -> None:
    """Install the project, with torch if wanted, and the named dependency groups."""
    if torch:
        session.install(*TORCH)
    session.install("-e", ".[torch]" if torch else ".", *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting of the sources with ruff."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the sources with mypy, strictly."""
    install(session, "types", "tests")
    session.run("mypy", "-p", "mdnc", "-p", "spec_tests")
    # The other ports are made of frameworks that are not installed here.
    ports = ROOT / "spec_tests" / "ports" / "python"
    plain = [str(ports / f"{name}.py") for name in ("protocol", "layers", "numpy_port")]
    session.run("mypy", "--explicit-package-bases", *plain, env={"MYPYPATH": str(ports)})
    session.run(
        "mypy",
        "--explicit-package-bases",
        "noxfile.py",
        *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "tools").glob("*.py"))),
    )


@nox.session
def tests(session: nox.Session) -> None:
    """Run the chapters against the reference, and the tests of the suite itself (arguments go to pytest)."""
    install(session, "tests", "build")
    # The command line that the tests call is the one of this checkout.
    session.run("pytest", "-n", "2", "--dist", "worksteal", "-rs", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def spec(session: nox.Session) -> None:
    """Judge the reference, clause by clause (arguments go to `mdnc-spec run`)."""
    install(session)
    subject = () if "--subject" in session.posargs else ("--subject", REFERENCE)
    session.run("mdnc-spec", "run", *subject, "-n", "auto", *session.posargs)


@nox.session
def golden(session: nox.Session) -> None:
    """Check golden tables against the reference, vectors and bounds against the oracle; `-- --update` writes them."""
    install(session)
    session.run("python", "tools/regenerate_golden.py", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, check what it holds, and run it from an empty directory in this clean environment."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "build"), *TORCH)
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder, silent=True)
        (wheel,) = Path(folder).glob("*.whl")
        session.run("python", "tools/check_wheel.py", str(wheel))
        session.install("--force-reinstall", "--no-deps", str(wheel))
        session.install(f"mdnc-spec[torch] @ {wheel.as_uri()}")
        empty = Path(folder) / "an empty directory"
        empty.mkdir()
        with session.chdir(empty):
            session.run("mdnc-spec", "list", "--clause", "1", silent=True)
            session.run("mdnc-spec", "run", "--subject", REFERENCE, "--profile", "smoke", "-n", "2")
        if any(empty.iterdir()):
            session.error(f"the run wrote into the working directory: {sorted(p.name for p in empty.iterdir())}")


@nox.session(default=False, python=["3.10", "3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run what needs no torch on every supported Python: the wheel a porter installs, listing, its own tests."""
    session.install("-e", ".")
    session.run("mdnc-spec", "list", silent=True)
    port = ROOT / "spec_tests" / "ports" / "python" / "numpy_port.py"
    subject = "cmd:" + shlex.join([str(Path(session.bin) / "python"), str(port)])
    session.run("mdnc-spec", "run", "--subject", subject, "--profile", "smoke", "-n", "2")
    session.run("pytest", "-p", "no:cacheprovider", *(f"spec_tests/meta/test_{name}.py" for name in FRAMEWORK_FREE))


FRAMEWORK_FREE = ("clauses", "compare", "config", "verdict", "imports", "traceability")


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """Judge the reference with the oldest releases that pyproject.toml admits (arguments go to `mdnc-spec run`)."""
    # Of numpy 1.26 there is no wheel for 3.13.
    if "True" in str(session.run("python", "-c", "import sys; print(sys.version_info >= (3, 13))", silent=True)):
        session.error("the oldest numpy is not for this Python: nox -s oldest --force-python 3.12 (or 3.11, 3.10)")
    project = PYPROJECT["project"]
    requirements = (*project["dependencies"], *project["optional-dependencies"]["torch"])
    session.install(*(requirement.replace(">=", "==") for requirement in requirements))
    session.install("--no-deps", "-e", ".")
    session.run("mdnc-spec", "run", "--subject", REFERENCE, *session.posargs)


@nox.session(default=False)
def oracle(session: nox.Session) -> None:
    """Check the oracle's bounds on correct implementations, and their power on wrong rules (minutes)."""
    install(session)
    session.run("python", "tools/soundness.py", *session.posargs)
    session.run("python", "tools/power.py")


@nox.session(default=False)
def shape_law(session: nox.Session) -> None:
    """Prove the shape law for all sizes with torch.export and z3 (minutes; arguments go to tools/shape_law.py)."""
    install(session, "tests")
    session.run("python", "tools/shape_law.py", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def ports(session: nox.Session) -> None:
    """Build and judge the ports, print the matrix port x chapter (arguments go to tools/ports.py)."""
    install(session, "ports")
    session.run("python", "tools/ports.py", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Check that every wrong block is killed, and rightly diagnosed (minutes; arguments go to tools/kill_matrix.py)."""
    install(session, "picture")
    for arguments in (session.posargs,) if session.posargs else ((), ("--ports",), ("--liars",), ("--diagnosis",)):
        session.run("python", "tools/kill_matrix.py", *arguments, env=ONE_THREAD)


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Mutate our own code; what no test notices must be explained (long; arguments go to tools/mutants.py)."""
    install(session, "tests", "types", "mutants")
    session.run("python", "tools/mutants.py", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def drift(session: nox.Session) -> None:
    """Show what moves between two environments: `nox -s drift -- torch==2.10.0 torch==2.13.0` (minutes)."""
    if len(session.posargs) != 2:
        session.error("two requirements, such as torch==2.10.0 torch==2.13.0; each may be several, in quotes")
    install(session)
    folder = Path(session.create_tmp())
    for number, requirement in enumerate(session.posargs):
        session.run("python", "-m", "venv", "--clear", str(folder / str(number)))
        install_into = (str(folder / str(number) / "bin" / "python"), "-m", "pip", "install", "-q")
        session.run(*install_into, *shlex.split(requirement), TORCH[1], external=True)
        session.run(*install_into, "-e", ".", external=True)
    # In turns, so that the machine's moods reach both.
    files = {(number, turn): str(folder / f"{number}-{turn}.safetensors") for turn in range(3) for number in (0, 1)}
    for (number, _), file in files.items():
        interpreter = str(folder / str(number) / "bin" / "python")
        session.run(interpreter, "tools/drift.py", "record", file, env=ONE_THREAD, external=True)
    one, two = (",".join(file for (number, _), file in files.items() if number == which) for which in (0, 1))
    session.run("python", "tools/drift.py", "compare", one, two)


@nox.session(default=False)
def campaign(session: nox.Session) -> None:
    """Let two workers search for failures in turns, and share what they find (arguments go to tools/campaign.py)."""
    install(session, "campaign")
    session.run("python", "tools/campaign.py", *session.posargs, success_codes=[0, 1], env=ONE_THREAD)


@nox.session(default=False)
def benchmark(session: nox.Session) -> None:
    """Print the cost of the reference as ratios (arguments go to tools/benchmark.py)."""
    install(session)
    session.run("python", "tools/benchmark.py", *(session.posargs or ("reference",)))


if sys.platform == "win32":
    os.environ.setdefault("PYTHONUTF8", "1")
