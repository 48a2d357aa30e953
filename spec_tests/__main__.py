"""`python -m spec_tests` is the command `mdnc-spec`."""

from spec_tests.cli import main

raise SystemExit(main())
