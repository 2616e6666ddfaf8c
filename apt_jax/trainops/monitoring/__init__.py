"""What a run says and records: console, JSON lines, TensorBoard, report, plot, environment."""

from apt_jax.trainops.monitoring.console import RunConsole, make_console
from apt_jax.trainops.monitoring.env import environment
from apt_jax.trainops.monitoring.header import RunHeader, batch_arithmetic
from apt_jax.trainops.monitoring.jsonl import EventLog, JsonlTracker, read_jsonl
from apt_jax.trainops.monitoring.plots import draw_report
from apt_jax.trainops.monitoring.report import ExperimentReport
from apt_jax.trainops.monitoring.tensorboard import TensorBoardTracker
from apt_jax.trainops.monitoring.tracker import MetricsLogger, Tracker, build_trackers

__all__ = [
    "EventLog",
    "ExperimentReport",
    "JsonlTracker",
    "MetricsLogger",
    "RunConsole",
    "RunHeader",
    "TensorBoardTracker",
    "Tracker",
    "batch_arithmetic",
    "build_trackers",
    "draw_report",
    "environment",
    "make_console",
    "read_jsonl",
]
