"""``python -m taskbasis``."""

from taskbasis.cli import main

main()
