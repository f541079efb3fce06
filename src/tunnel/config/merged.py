"""The options of a command: those of its file, overridden by flags and environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tunnel.config.cluster import ClusterConfig, read_config
from tunnel.config.node import Config
from tunnel.config.options import CLUSTER_OPTIONS
from tunnel.config.tomlfile import ConfigFile
from tunnel.errors import ConfigError


@dataclass(frozen=True)
class MergedOptions:
    """
    A file's options, overridden by those of the command line and the environment.

    Attributes:
        path: The file; None if there is none.
        flags: The options outside of the file, by name.
    """

    path: Path | None
    flags: dict[str, object]

    @classmethod
    def from_click(cls, path: Path | None, parameters: Mapping[str, object]) -> Self:
        """Takes click's parameters, except those that were not given."""
        given = {name: value for name, value in parameters.items() if value not in (None, ())}
        return cls(path, {name.replace("_", "-"): value for name, value in given.items()})

    def read(self) -> Config | ClusterConfig:
        """Reads the file and returns the configuration. Raises ConfigError, with the line of a
        fault in the file."""
        with self.locate_faults():
            return read_config(self._merge())

    def read_store(self) -> ClusterConfig:
        """The same for the options that are about the store only; ignores all others."""
        with self.locate_faults():
            merged = self._merge()
            return ClusterConfig.from_options(
                {
                    name: merged[name]
                    for name, option in CLUSTER_OPTIONS.items()
                    if option.group == "store" and name in merged
                }
            )

    def _merge(self) -> dict[str, object]:
        return {**(ConfigFile.read(self.path).options if self.path else {}), **self.flags}

    @contextmanager
    def locate_faults(self) -> Iterator[None]:
        """Adds the line to a ConfigError raised in the block, if its option is in the file."""
        try:
            yield
        except ConfigError as error:
            if self.path is None or not error.key or error.key[0] in self.flags:
                raise
            file = ConfigFile.read(self.path)
            if error.key[0] not in file.options:
                raise
            raise ConfigError(file.describe(error)) from None
