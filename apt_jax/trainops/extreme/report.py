"""What `ExtremeScaleTrainer.plan` answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apt_jax.trainops.extreme.placement import Placement
from apt_jax.trainops.extreme.reliability import Reliability
from apt_jax.trainops.plan import Plan


@dataclass(frozen=True)
class ScalePlan:
    """A step compiled for a large machine, its place on the links, and what failures do to it. Nothing was run.

    Attributes:
      plan: of the compiled step.
      placement: of the mesh.
      reliability: of the job.
      advice: a layout or number of devices that fits by the closed form, where the plan does not fit.
    """

    plan: Plan
    placement: Placement
    reliability: Reliability
    advice: str = ""

    @property
    def fits(self) -> bool:
        """Within the memory of a device."""
        return self.plan.fits

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes, FLOPs and seconds."""
        return {
            "plan": self.plan.to_json(),
            "placement": self.placement.to_json(),
            "reliability": self.reliability.to_json(),
            "advice": self.advice,
            "fits": self.fits,
        }

    def __str__(self) -> str:
        from apt_jax.trainops.extreme.text import render

        return render(self)
