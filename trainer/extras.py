"""What is installed only where somebody asks for it."""

from __future__ import annotations

import importlib.util


class NotInstalled(RuntimeError):
    """{0} needs what is not installed: pip install 'nextclick[{1}]', or leave it alone."""

    def __init__(self, asked: str, extra: str) -> None:
        super().__init__(str(self.__doc__).format(asked, extra))


def need(module: str, *, asked: str, extra: str) -> None:
    """Raises `NotInstalled` before anything long has begun."""
    if importlib.util.find_spec(module) is None:
        raise NotInstalled(asked, extra)
