"""What each mode of Virtual Blackwell saves, by the compiler: one plan per mode, all of the same model and batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from apt_jax.core.config import Config, to_config_dict, validate
from apt_jax.core.errors import AptError
from apt_jax.trainops.plan.make import make_plan
from apt_jax.trainops.plan.plan import Plan
from apt_jax.trainops.plan.text import aligned, size_text, time_text
from apt_jax.vgpu.runtime.modes import MODES, find_mode
from apt_jax.vgpu.runtime.switch import config_alone
from apt_jax.vgpu.scheduler.devices import Target

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

BASELINE = "plain"
# bf16 as every framework offers it: the whole attention matrix and all logits at once, every activation kept.
_PLAIN = {
    "training.mixed_precision": "bf16",
    "training.optimizer": "adamw",
    "model.attention_kernel": "reference",
    "model.remat_policy": "none",
}
# What modes may set stands at its default, so that a mode is seen whole whatever the profile chose.
_OPEN = {"training.mixed_precision": "auto", "training.optimizer": "adamw", "model.remat_policy": "none",
         "vgpu.offload": "auto"}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One mode.

    Attributes:
      name, description: of the mode; `plain` is what all are compared with.
      plan: None where it cannot be compiled.
      note: why not.
      unquantized: bytes of the same without quantized matmuls, for modes that have them.
    """

    name: str
    description: str
    plan: Plan | None
    note: str = ""
    unquantized: int | None = None

    @property
    def total(self) -> int | None:
        return None if self.plan is None else self.plan.allocated.total


@dataclass(frozen=True)
class ModeReport:
    """All modes of one config on one target; the first row is `plain`."""

    profile: str
    target: str
    recipe: str
    rows: tuple[Row, ...]

    def saved(self, row: Row) -> float | None:
        """Share of `plain`'s bytes that a row needs less."""
        first = self.rows[0].total
        return None if first is None or row.total is None else 1.0 - row.total / first

    def more_flops(self, row: Row) -> float | None:
        """FLOPs in matrix products beyond `plain`'s, as a share of them."""
        first = self.rows[0].plan
        return None if first is None or row.plan is None else row.plan.flops.device / first.flops.device - 1.0

    def to_json(self) -> dict[str, Any]:
        """Bytes, shares and seconds."""
        return {
            "profile": self.profile,
            "target": self.target,
            "recipe": self.recipe,
            "rows": [
                {
                    "mode": row.name,
                    "total": row.total,
                    "saved": self.saved(row),
                    "more_flops": self.more_flops(row),
                    "of_quantized_matmuls": _own_share(row),
                    "host": row.plan.allocated.host if row.plan else None,
                    "fits": row.plan.fits if row.plan else None,
                    "step_seconds_bound": row.plan.bounds.bound if row.plan else None,
                    "note": row.note,
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        table = [["mode", "one device", "needs", "on the host", "FLOPs", "step at least", "by quantized matmuls"]]
        for row in self.rows:
            own = _own_share(row)
            table.append([
                row.name,
                "-" if row.total is None else size_text(row.total),
                _percent(None if (saved := self.saved(row)) is None else -saved),
                "" if row.plan is None or not row.plan.allocated.host else size_text(row.plan.allocated.host),
                _percent(self.more_flops(row)),
                "" if row.plan is None else time_text(row.plan.bounds.bound),
                "" if own is None else "0" if abs(own) < 2**20 else size_text(own),
            ])  # fmt: skip
        notes = [f"{row.name}: {row.note or row.description}" for row in self.rows]
        return "\n".join([
            f"{self.profile} on {self.target}, bytes by the compiler; recipe of quantized matmuls: {self.recipe}",
            "",
            *aligned(table),
            "",
            *notes,
            "Quantized matmuls save time where the hardware has them, and these bytes; weights stay float32.",
        ])  # fmt: skip


def report_modes(
    config: Config,
    plugins: Plugins,
    target: Target,
    *,
    modes: Sequence[str] = tuple(MODES),
    progress: Callable[[str], None] = lambda line: None,
) -> ModeReport:
    """Compiles the config's step in every mode.

    Args:
      config: model, batch and layout are its own; what modes set is set to each mode's values.
      plugins, target: as for `make_plan`.
      modes: by name.
      progress: told what is compiled next.
    """
    with config_alone():
        rows = tuple(_rows(config, plugins, target, modes, progress))
    return ModeReport(config.profile.name, str(target), config.vgpu.recipe, rows)


def _rows(
    config: Config, plugins: Plugins, target: Target, modes: Sequence[str], progress: Callable[[str], None]
) -> Iterator[Row]:
    length = config.data.sequence_length or config.model.max_position_embeddings
    everything = {**_PLAIN, "training.loss_chunk": config.training.batch_size * length, "vgpu.enabled": False}
    progress(BASELINE)
    yield _row(BASELINE, "bf16, attention as one matrix, every activation kept", _with(config, everything), plugins,
               target)  # fmt: skip
    for name in modes:
        mode = find_mode(name)
        progress(name)
        chosen = _with(config, {**_OPEN, "vgpu.enabled": True, "vgpu.mode": name})
        row = _row(name, mode.description, chosen, plugins, target)
        if mode.quantizes and row.plan is not None:
            without = _with(config, {**_OPEN, "vgpu.enabled": True, "vgpu.mode": name, "vgpu.recipe": "none"})
            progress(f"{name} without quantized matmuls")
            row = replace(row, unquantized=_row(name, "", without, plugins, target).total)
        yield row


def _row(name: str, description: str, config: Config, plugins: Plugins, target: Target) -> Row:
    try:
        return Row(name, description, make_plan(config, plugins, target))
    except AptError as error:
        return Row(name, description, None, str(error))


def _with(config: Config, values: dict[str, Any]) -> Config:
    changed = to_config_dict(config)
    changed.update_from_flattened_dict(values)
    return validate(changed, source="vb report")


def _own_share(row: Row) -> int | None:
    """Bytes that quantized matmuls alone save; below zero where they need more."""
    return None if row.unquantized is None or row.total is None else row.unquantized - row.total


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:+.0%}" if abs(share) >= 0.005 else "0%"
