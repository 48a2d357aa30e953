"""The command `mdnc-spec`, which is `python -m spec_tests` too."""


def main() -> int:
    """Run the command; Ctrl-C is no traceback, even while all of it is still being imported."""
    try:
        from spec_tests.cli import main as command

        return command()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
