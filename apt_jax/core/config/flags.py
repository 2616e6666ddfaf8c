"""The training command line: `--config=… --workdir=… --config.a.b=v --plugins=a,-b`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_collections

from apt_jax.core.config.draft import Draft
from apt_jax.core.config.keys import all_keys, describe_keys
from apt_jax.core.config.profiles import list_profiles, read_profile
from apt_jax.core.config.schema import Config
from apt_jax.core.config.validate import to_config_dict
from apt_jax.core.errors import ConfigError, did_you_mean

_FLAGS = ("config", "workdir", "plugins", "plugins_dir", "stop_at", "accept_config_change")
_SWITCHES = ("accept_config_change",)
_KEY = "config."

USAGE = """\
usage: python -m apt_jax.main --config=PROFILE [--workdir=DIR] [--config.KEY=VALUE ...]

  --config=PROFILE      a shipped name, file.py, file.py:argument, or file.yaml
  --workdir=DIR         where checkpoints, metrics and plots go; the same command again continues there
  --config.KEY=VALUE    override one key, e.g. --config.training.learning_rate=3e-4;
                        lists as a,b or "['a', 'b']", mappings as "{'a': 1}", none for no value
  --plugins=a,-b        load a (and stop when it cannot be), never load b; none loads built-ins only
  --plugins_dir=DIR     folder of single-file plugins
  --stop_at=STEP        end after this step with a checkpoint, as if interrupted
  --accept_config_change  continue a workdir that was written by another config
  --help, --helpfull    this text; with all configuration keys

shipped profiles: """


@dataclass(frozen=True)
class RunArguments:
    """What a command line asks for.

    Attributes:
      config: every key, locked; what a person would edit.
      validated: the same, frozen.
      workdir: None when not given.
      source: the profile's path.
      overrides: `key=value` texts in the order given.
      notes: keys of a YAML profile that do not apply, one line each, to be shown to the user.
      stop_at_step: end after this step; None: at the run's own end.
      accept_config_change: continue a workdir of another config.
    """

    config: ml_collections.ConfigDict
    validated: Config
    workdir: Path | None
    source: str
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stop_at_step: int | None = None
    accept_config_change: bool = False


def parse_command_line(argv: Sequence[str]) -> RunArguments:
    """Reads the arguments after the program's name.

    `--flag=value` and `--flag value` are the same; a bare `--config.x.y` sets a switch to true.
    `--help` and `--helpfull` print and exit with 0.

    Raises:
      ConfigError: any mistake, as one line.
    """
    if any(word in ("--help", "-h", "--helpshort", "--helpfull") for word in argv):
        print(_help(full="--helpfull" in argv))
        sys.exit(0)
    flags, overrides = _split(argv)
    if "config" not in flags:
        shipped = ", ".join(list_profiles())
        raise ConfigError(
            f"--config is missing: give a profile, e.g. --config=playground; shipped: {shipped}"
        )
    draft = read_profile(flags["config"])
    source = draft.source
    draft.override(overrides, prefix="--config.")
    _apply_plugin_flags(draft, flags)
    if overrides:
        draft.source = f"{source} with the command line's changes"
    validated = draft.validated()
    return RunArguments(
        config=to_config_dict(validated),
        validated=validated,
        workdir=Path(flags["workdir"]).expanduser() if "workdir" in flags else None,
        source=source,
        overrides=tuple(overrides),
        notes=tuple(draft.notes),
        stop_at_step=_step(flags["stop_at"]) if "stop_at" in flags else None,
        accept_config_change="accept_config_change" in flags,
    )


def _step(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"--stop_at={text}: expected a step, an integer >= 1")
    return int(text)


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Sorts the words into flags and `key=value` overrides."""
    flags: dict[str, str] = {}
    overrides: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("-"):
            raise ConfigError(f"unexpected argument '{word}'; flags are written --name=value")
        name = name.lstrip("-")
        if name.startswith(_KEY):
            value = value if equals else _next_value(words, name.removeprefix(_KEY), word)
            overrides.append(f"{name.removeprefix(_KEY)}={value}")
            continue
        name = name.replace("-", "_")
        if name not in _FLAGS:
            raise ConfigError(f"unknown flag '{word}'{_nearest_flag(name)}; flags: {_flag_list()}")
        if name in flags:
            raise ConfigError(f"--{name} is given twice")
        if name in _SWITCHES:
            if equals:
                raise ConfigError(f"--{name} takes no value; give it or leave it out")
            flags[name] = "true"
            continue
        value = value if equals else _next_value(words, name, word)
        if not value:
            raise ConfigError(f"--{name} is empty; write --{name}=VALUE")
        flags[name] = value
    return flags, overrides


def _next_value(words: list[str], name: str, word: str) -> str:
    """Takes the value that stands as a word of its own; a bare switch means true."""
    key = all_keys().get(name)
    if key is not None and key.kind == "bool":
        is_value = bool(words) and words[0].lower() in ("true", "false", "none", "null")
        return words.pop(0) if is_value else "true"
    if not words or words[0].startswith("--"):
        raise ConfigError(f"{word} needs a value: write {word}=VALUE")
    return words.pop(0)


def _nearest_flag(name: str) -> str:
    head, dot, rest = name.partition(".")
    if dot:  # --confg.training.seed, --training.seed
        hint = did_you_mean(head, ("config",))
        if hint:
            return f" (did you mean '--config.{rest}'?)"
    if name in all_keys():
        return f" (did you mean '--config.{name}'?)"
    inside = [path for path in all_keys() if path.rpartition(".")[2] == name]
    if inside:
        return f" (did you mean '--config.{inside[0]}'?)"
    return did_you_mean(f"--{name}", [f"--{flag}" for flag in _FLAGS])


def _flag_list() -> str:
    return ", ".join(f"--{flag}" for flag in _FLAGS) + ", --config.KEY"


def _apply_plugin_flags(draft: Draft, flags: dict[str, str]) -> None:
    """`--plugins` replaces the profile's lists; `-name` disables, `none` disables all."""
    if "plugins" in flags:
        names = [name.strip() for name in flags["plugins"].split(",")]
        if not all(name.lstrip("-") for name in names):
            raise ConfigError(
                f"--plugins={flags['plugins']}: an empty name; write --plugins=a,-b or --plugins=none"
            )
        place = f"--plugins={flags['plugins']}"
        disabled = ["*"] if names == ["none"] else [name[1:] for name in names if name.startswith("-")]
        enabled = [name for name in names if not name.startswith("-") and names != ["none"]]
        draft.put("plugins.enabled", enabled, place)
        draft.put("plugins.disabled", disabled, place)
    if "plugins_dir" in flags:
        draft.put("plugins.dir", flags["plugins_dir"], f"--plugins_dir={flags['plugins_dir']}")


def _help(*, full: bool) -> str:
    usage = USAGE + ", ".join(list_profiles())
    if not full:
        return f"{usage}\nall configuration keys: --helpfull"
    return "\n".join([usage, "", "configuration keys:", *(f"  {line}" for line in describe_keys())])
