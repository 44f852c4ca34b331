"""`python -m rlgym` is the `rlgym` command."""

from rlgym.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
