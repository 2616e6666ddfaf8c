"""What a compiled program sends between devices: kind, mesh axes, bytes and executions of every collective."""

from apt_jax.trainops.distributed.collectives.hlo import ProgramError
from apt_jax.trainops.distributed.collectives.read import Collective, read_collectives
from apt_jax.trainops.distributed.collectives.summary import Total, render, summarize

__all__ = ["Collective", "ProgramError", "Total", "read_collectives", "render", "summarize"]
