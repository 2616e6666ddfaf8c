"""The hook contract: every point where a plugin may enter, and what it promises there.

A plugin is a module (or an object) with functions named as below and marked with `@hookimpl`; it
declares the contract it was written for with `apt_jax_api = "1"` (or a range, `">=1,<3"`):

    from apt_jax import hookimpl
    apt_jax_api = "1"

    @hookimpl
    def apt_step_end(step, metrics):
        print(step, metrics["loss"])

It takes any subset of a hook's arguments, by name and without defaults. There are three kinds:

- **register** hooks return `{name: target}`. A target is the factory itself or the text
  `"module:attribute"`, imported when first used. Names are unique over all plugins.
- **transform** hooks shape the run while it is built or traced. They are pure: same arguments, same
  result, no side effects. An exception stops the run and names the plugin.
- **observe** hooks watch from the host and never enter the compiled step. Their result is ignored.
  An exception is reported; a plugin with three of them is watched no longer, and the run goes on.

Order: built-ins first, then plugins by name; `tryfirst=True` goes before all of those and
`trylast=True` after (several of them: by name, and by name reversed). Wrappers are refused: every
result belongs to one plugin. Specifications have no body and import no jax.
"""

from apt_jax.core.hookkinds import COMBINE, KINDS, PROJECT, Combine, Kind, hookimpl
from apt_jax.core.hooks.types import Metrics, Model, Optimizer, Run, Targets

# isort: off
# In this order they are listed.
from apt_jax.core.hooks.register import (
    apt_architectures,
    apt_attention_kernels,
    apt_backends,
    apt_commands,
    apt_datasets,
    apt_devices,
    apt_losses,
    apt_memory_tiers,
    apt_metrics,
    apt_optimizers,
    apt_package_stores,
    apt_quant_formats,
    apt_quant_methods,
    apt_schedules,
    apt_tokenizers,
    apt_trackers,
    apt_trainers,
)
from apt_jax.core.hooks.transform import (
    apt_configure,
    apt_loss_terms,
    apt_memory_kinds,
    apt_precision_policy,
    apt_quant_rules,
    apt_remat_policy,
    apt_residual_rules,
    apt_schedule_values,
    apt_sharding_rules,
    apt_transform_model,
    apt_transform_optimizer,
)
from apt_jax.core.hooks.observe import (
    apt_checkpoint_saved,
    apt_epoch_begin,
    apt_epoch_end,
    apt_eval_end,
    apt_failure,
    apt_step_end,
    apt_train_begin,
    apt_train_end,
)
# isort: on

API_VERSION = "1"  # raised when an implementation written for the contract would have to change

__all__ = [
    "API_VERSION",
    "COMBINE",
    "KINDS",
    "PROJECT",
    "Combine",
    "Kind",
    "Metrics",
    "Model",
    "Optimizer",
    "Run",
    "Targets",
    "apt_architectures",
    "apt_attention_kernels",
    "apt_backends",
    "apt_checkpoint_saved",
    "apt_commands",
    "apt_configure",
    "apt_datasets",
    "apt_devices",
    "apt_epoch_begin",
    "apt_epoch_end",
    "apt_eval_end",
    "apt_failure",
    "apt_loss_terms",
    "apt_losses",
    "apt_memory_kinds",
    "apt_memory_tiers",
    "apt_metrics",
    "apt_optimizers",
    "apt_package_stores",
    "apt_precision_policy",
    "apt_quant_formats",
    "apt_quant_methods",
    "apt_quant_rules",
    "apt_remat_policy",
    "apt_residual_rules",
    "apt_schedule_values",
    "apt_schedules",
    "apt_sharding_rules",
    "apt_step_end",
    "apt_tokenizers",
    "apt_trackers",
    "apt_train_begin",
    "apt_train_end",
    "apt_trainers",
    "apt_transform_model",
    "apt_transform_optimizer",
    "hookimpl",
]  # fmt: skip
