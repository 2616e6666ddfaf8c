"""Failures of a job: how often, what checkpoints cost, how often to write them, and what goodput is left.

print(reliability(devices=100_000, state_bytes=2_100e9, writers=32, faults=Faults()).goodput)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from apt_jax.core.errors import ConfigError
from apt_jax.trainops.extreme.goodput import Shares, daly_interval, shares, young_interval

# "The Llama 3 Herd of Models" (arXiv:2407.21783, section 3.3.4): 466 interruptions in 54 days on 16,384 H100, 47 of
# them planned: 16,384 · 54 · 24 h / 419 = 50,700 device-hours per failure.
MTBF_HOURS = 50_000.0
# The same paper, section 3.3.1: 7,500 storage servers sustain 2 TB/s together.
STORAGE_BANDWIDTH = 2e12
DEVICE_BANDWIDTH = 2e9  # two thirds of a device's eighth of a 200 Gb/s storage port per host: a round figure
RESTART_SECONDS = 600.0  # to notice, replace the host, start, compile and load: a round figure
_AROUND = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the device's MTBF, in the table
_HOUR, _DAY = 3600.0, 86_400.0


@dataclass(frozen=True)
class Faults:
    """What is assumed of failures and storage.

    Attributes:
      mtbf_hours: hours from one failure of a device to its next, with its share of host and network.
      restart_seconds: from a failure until steps are made again.
      device_bandwidth: bytes/s that one device can write to storage.
      storage_bandwidth: bytes/s that storage takes from all devices together.
      checkpoint_seconds: for which steps stand still at a checkpoint; None: state over bandwidth, as if nothing
        were written while training goes on.
    """

    mtbf_hours: float = MTBF_HOURS
    restart_seconds: float = RESTART_SECONDS
    device_bandwidth: float = DEVICE_BANDWIDTH
    storage_bandwidth: float = STORAGE_BANDWIDTH
    checkpoint_seconds: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a figure that no machine can have."""
        for name, value in asdict(self).items():
            if value is None:
                continue
            may_be_zero = name == "restart_seconds"
            if not math.isfinite(value) or value < 0 or (value == 0 and not may_be_zero):
                raise ConfigError(f"{name}: {value:g} must be {'0 or more' if may_be_zero else 'above 0'}, and finite")


@dataclass(frozen=True)
class Row:
    """The outcome for one failure rate.

    Attributes:
      device_mtbf_hours: of one device.
      mtbf: seconds between failures of the job.
      interval: seconds of work between checkpoints, by Daly.
      shares: of the time, with that interval.
    """

    device_mtbf_hours: float
    mtbf: float
    interval: float
    shares: Shares

    @property
    def failures_per_day(self) -> float:
        """Expected."""
        return _DAY / self.mtbf


@dataclass(frozen=True)
class Reliability:
    """What failures do to a job.

    Attributes:
      devices: any of which ends the job when it fails.
      faults: what was assumed.
      state_bytes, writers: of a checkpoint, and devices that hold one copy of it and write.
      checkpoint_seconds: of one checkpoint.
      young: seconds of work between checkpoints, to first order.
      step_seconds: of a step, at least; None: not known.
      expected: at the assumed failure rate.
      table: the same for rates around it.
    """

    devices: int
    faults: Faults
    state_bytes: int
    writers: int
    checkpoint_seconds: float
    young: float
    step_seconds: float | None
    expected: Row
    table: tuple[Row, ...]

    @property
    def goodput(self) -> float:
        """Expected share of the time in which work is done that is kept."""
        return self.expected.shares.useful

    @property
    def save_interval(self) -> int | None:
        """Steps between checkpoints, if steps took no longer than they must: for `checkpoints.save_interval`."""
        if not self.step_seconds:
            return None
        return max(1, round(self.expected.interval / self.step_seconds))

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes, seconds and shares."""
        return {
            **asdict(self),
            "goodput": self.goodput,
            "save_interval": self.save_interval,
            "failures_per_day": self.expected.failures_per_day,
            "table": [{**asdict(row), "failures_per_day": row.failures_per_day} for row in self.table],
        }


def reliability(
    devices: int,
    state_bytes: float,
    writers: int,
    faults: Faults,
    step_seconds: float | None = None,
) -> Reliability:
    """Failure arithmetic for a job that any of its devices can end.

    Args:
      devices: of the job.
      state_bytes: of a checkpoint: parameters and optimizer state, once.
      writers: devices that hold one copy of the state and write it.
      faults: failure rate, restart time, storage.
      step_seconds: of a step, at least.
    """
    seconds = faults.checkpoint_seconds
    if seconds is None:
        seconds = max(state_bytes / writers / faults.device_bandwidth, state_bytes / faults.storage_bandwidth)
    rows = {factor: _row(faults.mtbf_hours * factor, devices, seconds, faults.restart_seconds) for factor in _AROUND}
    return Reliability(
        devices=devices,
        faults=faults,
        state_bytes=int(state_bytes),
        writers=writers,
        checkpoint_seconds=seconds,
        young=young_interval(seconds, rows[1.0].mtbf),
        step_seconds=step_seconds,
        expected=rows[1.0],
        table=tuple(rows.values()),
    )


def writers_of(mesh: Mapping[str, int]) -> int:
    """Devices that hold one copy of the state: every axis but `data`, and `context`, which cuts no parameter."""
    return math.prod(size for axis, size in mesh.items() if axis not in ("data", "context"))


def _row(device_mtbf_hours: float, devices: int, checkpoint: float, restart: float) -> Row:
    mtbf = device_mtbf_hours * _HOUR / devices
    interval = daly_interval(checkpoint, mtbf)
    return Row(device_mtbf_hours, mtbf, interval, shares(interval, checkpoint, mtbf, restart))
