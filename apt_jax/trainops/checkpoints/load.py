"""A trained model from its work directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.core.config import Config, validate
from apt_jax.core.errors import CheckpointError
from apt_jax.core.registry import Plugins, load_plugins
from apt_jax.model.build import build_model
from apt_jax.trainops.checkpoints.manager import CheckpointManager
from apt_jax.trainops.checkpoints.workdir import CONFIG_FILE, read_config


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to use.

    Attributes:
      model: fulfils `apt_jax.model.api.LanguageModel`.
      tokenizer: the run's.
      config: the run's.
      step: finished steps of the checkpoint.
    """

    model: Any
    tokenizer: Any
    config: Config
    step: int


def load_model(
    workdir: str | Path,
    step: int | None = None,
    *,
    best: bool = False,
    dtype: Any = jnp.float32,
    plugins: Plugins | None = None,
) -> LoadedModel:
    """Restores the parameters of a run.

    Args:
      workdir: the run's folder.
      step: which checkpoint; None: the newest.
      best: the one with the lowest evaluation loss instead of the newest.
      dtype: of activations and matmuls.
      plugins: None: loaded by the run's config.

    Raises:
      CheckpointError: no run, no checkpoint, or one that does not fit.
    """
    # Data handling is not needed by who only trains; importing it here keeps the modules' order simple.
    from apt_jax.trainops.data.vocabulary import load_kept

    folder = Path(workdir)
    file = folder / CONFIG_FILE
    if not file.exists():
        raise CheckpointError(f"{folder}: holds no run ({CONFIG_FILE} is missing); give a --workdir of training")
    config = validate(read_config(file), source=str(file))
    chosen = config.plugins
    plugins = plugins or load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
    tokenizer = load_kept(folder)
    manager = CheckpointManager(folder / "checkpoints", read_only=True)
    try:
        if step is None:
            step = (manager.best_step() if best else None) or manager.latest_step()
        abstract = nnx.eval_shape(lambda: build_model(config, tokenizer.vocab_size, plugins, dtype=dtype))
        graphdef, state = nnx.split(abstract)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), nnx.to_pure_dict(state)
        )
        params = manager.restore_params(target, step)
    finally:
        manager.close()
    return LoadedModel(nnx.merge(graphdef, params), tokenizer, config, step or 0)
