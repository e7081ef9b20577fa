"""A package, so that `python -m tests.parity` finds it even beside a library that installs one of this name."""
