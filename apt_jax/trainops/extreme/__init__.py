"""Training at the scale where layout, wires and failures decide: validated, compiled and reckoned with in advance.

trainer = ExtremeScaleTrainer(model="175B", world_size=99_968, device="h100")    # a layout that fits is chosen
print(trainer.plan())       # placement on links, the compiled step, checkpoint interval and goodput
trainer.train()             # where the machine really has the devices
"""

from __future__ import annotations

from apt_jax.core.lazy import lazy_exports

# Name -> module, imported when the name is first used: reckoning alone needs no jax.
_PUBLIC = {
    "ExtremeScaleTrainer": "apt_jax.trainops.extreme.trainer",
    "ScalePlan": "apt_jax.trainops.extreme.report",
    "Placement": "apt_jax.trainops.extreme.placement",
    "Faults": "apt_jax.trainops.extreme.reliability",
    "Reliability": "apt_jax.trainops.extreme.reliability",
}

__all__ = [*_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]  # names of __getattr__

__getattr__, __dir__ = lazy_exports(__name__, _PUBLIC)
