"""Opens the device of a node, with one queue for each worker."""

from __future__ import annotations

import os

from tunnel.config.node import AUTO_WORKERS, Config
from tunnel.errors import ConfigError, DeviceError
from tunnel.linux.tun import Device, open_device


def count_workers(config: Config, *, with_device: bool) -> int:
    """Returns how many workers the configuration asks for. Raises ConfigError for several without
    a device."""
    if config.workers == "auto":
        return min(len(os.sched_getaffinity(0)), AUTO_WORKERS) if with_device else 1
    if config.workers > 1 and not with_device:
        raise ConfigError(
            f"workers {config.workers} need a device (without one there is one worker)",
            key=("workers",),
        )
    return config.workers


def open_queues(config: Config, count: int) -> Device:
    """Returns the device with `count` queues, or with one if `workers` is ``auto`` and the device
    does not allow more, as a persistent one may. Raises DeviceError."""
    try:
        return open_device(config.name, offloads=config.offload, queues=count, mode=config.mode)
    except DeviceError:
        if count == 1 or config.workers != "auto":
            raise
        return open_device(config.name, offloads=config.offload, mode=config.mode)
