"""Task vectors as first-class things."""

from taskbasis._version import __version__

__all__ = ["__version__"]
