"""The version of the installed package, read once: a node may later not read its installation."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("tunnel")
