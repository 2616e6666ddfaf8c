"""Plans: the real train step, compiled for a machine that need not exist.

plan = make_plan(config, plugins, parse_target("h100:16", plugins))
print(render(plan))                       # memory by cause, FLOPs, collectives, bounds on the time of a step
"""

from apt_jax.trainops.plan.compiled import Compiled, PlanError, TooLargeError, compile_step
from apt_jax.trainops.plan.make import make_plan
from apt_jax.trainops.plan.plan import Plan
from apt_jax.trainops.plan.text import render

__all__ = ["Compiled", "Plan", "PlanError", "TooLargeError", "compile_step", "make_plan", "render"]
