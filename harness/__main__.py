"""``python -m harness`` is ``qharness``."""

from harness.cli import main

if __name__ == "__main__":
    main()
