"""``python -m taskbasis.cli``."""

from taskbasis.cli import main

main()
