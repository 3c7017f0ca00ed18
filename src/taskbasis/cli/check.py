"""taskbasis check"""

from taskbasis.cli.recipes import check

__all__ = ["check"]
