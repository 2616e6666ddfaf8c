"""Turns a YAML profile in the platform's documented format into ours.

Every key of the file ends in one of three ways: it sets a key of ours, it is noted as not
applicable with the reason, or it is refused as unknown with the nearest name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apt_jax.core.config import yaml_keys
from apt_jax.core.config.draft import Draft
from apt_jax.core.config.keys import all_keys, sections
from apt_jax.core.config.values import show
from apt_jax.core.config.yaml_loader import load_yaml
from apt_jax.core.errors import ConfigError, did_you_mean

# The documented sizes are one architecture; the numbers beside the name say how large it is.
_SIZED_ARCHITECTURES = ("apt_small", "apt_base", "apt_large", "apt_xlarge")
_REMAT = {"none": "none", "selective": "attention", "full": "full"}
_LAYOUT = "training.distributed"


def read_yaml_profile(path: Path) -> Draft:
    """Reads a `.yaml` profile; raises ConfigError naming file, line and key."""
    values, lines = load_yaml(path)
    draft = Draft(source=str(path), values={"profile": {"name": path.stem}})
    reader = _Reader(draft, str(path), lines)
    reader.section(values, "")
    reader.finish()
    return draft


class _Reader:
    def __init__(self, draft: Draft, source: str, lines: Mapping[str, int]) -> None:
        self.draft = draft
        self._source = source
        self._lines = lines
        self._given: dict[str, str] = {}  # our key -> the profile's key that set it
        self._checkpointing: bool | None = None
        self._trackers: dict[str, tuple[str, dict[str, Any]]] = {}  # name -> (the profile's key, settings)
        self._handlers: dict[str, Callable[[str, Any], None]] = {
            "model.architecture": self._architecture,
            "training.mixed_precision": self._mixed_precision,
            "training.optimizer": self._optimizer,
            "model.features.gradient_checkpointing": self._gradient_checkpointing,
            "training.gradient_checkpointing": self._gradient_checkpointing,
            "memory.gradient_checkpointing": self._gradient_checkpointing,
            "memory.activation_checkpointing": self._activation_checkpointing,
            "memory.zero_stage": self._zero_stage,
            "monitoring.tensorboard": self._tensorboard,
            "monitoring.wandb": self._tracker,
            "monitoring.mlflow": self._tracker,
            "monitoring.prometheus": self._tracker,
            "data.loader": self._loader,
            "profile.version": self._version,
        }

    def section(self, values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            path = prefix + name
            if path == "plugins" and isinstance(value, list):
                self._plugin_list(path, value)
            elif path in self._handlers:
                self._handlers[path](path, value)
            elif path in all_keys():
                # `extensions:` with nothing below it is an empty mapping, not a missing value.
                empty = value is None and isinstance(all_keys()[path].default, Mapping)
                self._set(path, {} if empty else value, path)
            elif path in yaml_keys.RENAMED:
                self._set(yaml_keys.RENAMED[path], value, path)
            elif path in yaml_keys.NOT_APPLICABLE:
                self._note(path, yaml_keys.NOT_APPLICABLE[path])
            elif path in yaml_keys.ABSENT:
                if not _is_off(value):
                    self._note(path, yaml_keys.ABSENT[path])
            elif path in _SECTIONS:
                if value is not None and not isinstance(value, Mapping):
                    inside = ", ".join(_inside(path))
                    raise self._error(path, f"is a section, got {show(value)}; inside it: {inside}")
                self.section(value or {}, path + ".")
            else:
                allowed = _inside(prefix.rstrip("."))
                where = f"allowed in '{prefix[:-1]}'" if prefix else "sections"
                hint = did_you_mean(name, allowed)
                raise self._error(path, f"unknown key{hint}; {where}: {', '.join(allowed)}")

    def finish(self) -> None:
        """Settles what depends on several keys of the profile."""
        self._finish_trackers()
        if self._checkpointing is not None and "model.remat_policy" not in self._given:
            self.draft.put("model.remat_policy", "full" if self._checkpointing else "none", self._source)
        data, experts = (self.draft.get(f"{_LAYOUT}.{axis}_parallel") for axis in ("data", "expert"))
        if _is_size(data) and _is_size(experts) and experts > 1 and data % experts == 0:
            # There, experts live inside the data-parallel group; here they are an axis beside it.
            path = f"{_LAYOUT}.data_parallel"
            self.draft.put(path, data // experts, self._place(self._given[path]))
            self._note(
                self._given[path], f"{data} includes {experts} expert groups: {path} is {data // experts}"
            )
        parts = self.draft.get("training.gradient_accumulation_steps")
        if _is_size(parts) and parts > 1:
            reason = f"cuts the batch in {parts}; training.batch_size is the whole batch of one step"
            self._note("training.gradient_accumulation_steps", reason)
        axes = [self.draft.get(f"{_LAYOUT}.{axis}_parallel") for axis in ("tensor", "pipeline", "expert")]
        if f"{_LAYOUT}.strategy" not in self._given and any(_is_size(size) and size > 1 for size in axes):
            self.draft.put(f"{_LAYOUT}.strategy", "hybrid", self._source)

    def _finish_trackers(self) -> None:
        for name, (path, settings) in self._trackers.items():
            listed = self.draft.get("monitoring.trackers") or []
            listed = [listed] if isinstance(listed, str) else listed
            if isinstance(listed, list) and name not in listed:
                self.draft.put("monitoring.trackers", [*listed, name], self._place(path))
            if settings and self.draft.get(f"extensions.{name}") is not None:
                raise self._error(path, f"says the same as 'extensions.{name}'; keep one of them")
            if settings:
                self.draft.put(f"extensions.{name}", settings, self._place(path))

    def _set(self, target: str, value: Any, path: str) -> None:
        if target in self._given:
            other = self._given[target]
            raise self._error(path, f"says the same as '{other}'; keep one of them")
        self._given[target] = path
        self.draft.put(target, value, self._place(path) + ("" if path == target else f" ({path})"))

    def _note(self, path: str, reason: str) -> None:
        self.draft.notes.append(f"{self._place(path)}: {path}: {reason}")

    def _place(self, path: str) -> str:
        return f"{self._source}:{self._lines[path]}" if path in self._lines else self._source

    def _error(self, path: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._place(path)}: {path}: {problem}")

    def _switch(self, path: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._error(path, f"expected true or false, got {show(value)}")
        return value

    def _version(self, path: str, value: Any) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        self._set(path, str(value) if is_number else value, path)

    def _architecture(self, path: str, value: Any) -> None:
        if value in _SIZED_ARCHITECTURES:
            self._note(path, f"'{value}' is the architecture 'apt'; its size is what the other keys say")
            value = "apt"
        self._set(path, value, path)

    def _mixed_precision(self, path: str, value: Any) -> None:
        self._set(path, ("auto" if value else "fp32") if isinstance(value, bool) else value, path)

    def _optimizer(self, path: str, value: Any) -> None:
        if value == "adamw_fused":
            self._note(path, "'adamw_fused' is 'adamw': XLA fuses it")
            value = "adamw"
        self._set(path, value, path)

    def _gradient_checkpointing(self, path: str, value: Any) -> None:
        switch = self._switch(path, value)
        if self._checkpointing not in (None, switch):
            raise self._error(path, f"is {str(switch).lower()}, but another section says the opposite")
        self._checkpointing = switch

    def _activation_checkpointing(self, path: str, value: Any) -> None:
        if not isinstance(value, str) or value not in _REMAT:
            raise self._error(path, f"expected one of {', '.join(_REMAT)}, got {show(value)}")
        self._set("model.remat_policy", _REMAT[value], path)

    def _zero_stage(self, path: str, value: Any) -> None:
        if isinstance(value, bool) or value not in (0, 1, 2, 3):
            raise self._error(path, f"expected 0, 1, 2 or 3, got {show(value)}")
        if value:
            self._set(f"{_LAYOUT}.strategy", f"zero{int(value)}", path)

    def _tensorboard(self, path: str, value: Any) -> None:
        enabled, settings = self._enabled(path, value)
        self._set("monitoring.tensorboard", enabled, path)
        for name in settings:
            self._note(f"{path}.{name}", "TensorBoard events lie in the work directory")

    def _tracker(self, path: str, value: Any) -> None:
        enabled, settings = self._enabled(path, value)
        name = path.rpartition(".")[2]
        if enabled:
            self._trackers[name] = path, settings
        elif settings:
            self._note(path, "switched off; its settings are not used")

    def _enabled(self, path: str, value: Any) -> tuple[bool, dict[str, Any]]:
        """Reads `true`, or `{enabled: true, further: settings}`."""
        if not isinstance(value, Mapping):
            return self._switch(path, value), {}
        enabled = self._switch(f"{path}.enabled", value.get("enabled", True))
        return enabled, {name: item for name, item in value.items() if name != "enabled"}

    def _loader(self, path: str, value: Any) -> None:
        self._set("data.source", "auto" if value == "text_default" else value, path)

    def _plugin_list(self, path: str, value: list[Any]) -> None:
        wanted = [name for name in value if name not in yaml_keys.FEATURE_PLUGINS]
        if len(wanted) < len(value):
            features = ", ".join(str(name) for name in value if name in yaml_keys.FEATURE_PLUGINS)
            self._note(path, f"{features}: features of a model, switched on by its architecture's options")
        self._set("plugins.enabled", wanted, path)


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, Mapping) and value.get("enabled") is False)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_KNOWN = (*all_keys(), *yaml_keys.RENAMED, *yaml_keys.ABSENT, *yaml_keys.NOT_APPLICABLE, *yaml_keys.SPECIAL)
_SECTIONS = {path.rpartition(".")[0] for path in _KNOWN} | set(sections())


def _inside(section: str) -> list[str]:
    """Returns every name a profile may use directly inside a section."""
    prefix = section + "." if section else ""
    names = (path[len(prefix) :].partition(".")[0] for path in _KNOWN if path.startswith(prefix))
    return list(dict.fromkeys(names))
