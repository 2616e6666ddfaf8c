"""apt_jax: train, plan, compress and ship language models in JAX; everything beyond the core is a plugin.

Importing it is light: jax is imported when one of the public names that need it is first used.
"""

from __future__ import annotations

from apt_jax.core.hookspecs import hookimpl
from apt_jax.core.lazy import lazy_exports

__version__ = "0.1.0"

_PUBLIC = {
    "APTLargeModel": "apt_jax.model.architectures",
    "APTModel": "apt_jax.model.architectures",
    "Config": "apt_jax.core.config",
    "Trainer": "apt_jax.trainops.engine.trainer",
    "list_profiles": "apt_jax.core.config",
    "load_plugins": "apt_jax.core.registry",
    "load_profile": "apt_jax.core.config",
}

__all__ = ["__version__", "hookimpl", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]  # names of __getattr__

__getattr__, __dir__ = lazy_exports(__name__, _PUBLIC)
