"""One file a chapter of SPEC.md. A test cites its clauses, states one law, and never asks a framework."""
