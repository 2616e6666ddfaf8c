"""The command line `apt-jax COMMAND …`: one module per command, imported only when it is called.

A command's module has `main(argv) -> int`: the arguments after its name in, the exit code out.
Plugins add commands through `apt_commands`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from apt_jax import __version__
from apt_jax.core.errors import AptError, unknown_name
from apt_jax.core.logs import set_up_logging
from apt_jax.core.registry import Registry, load_plugins

# Name -> (module, one line of help). A table, because help must not import what it describes.
COMMANDS: dict[str, tuple[str, str]] = {
    "config": ("apt_jax.cli.config", "list all configuration keys, show or check a profile"),
    "export": ("apt_jax.cli.export", "write a trained model as a Hugging Face folder"),
    "extreme": ("apt_jax.cli.extreme", "plan for very many devices: layout, links, the compiled step, failures"),
    "generate": ("apt_jax.cli.generate", "continue a prompt with a trained model"),
    "hlbd": ("apt_jax.cli.hlbd", "generate, check and verify HLBD data"),
    "plan": ("apt_jax.cli.plan", "compile a step for a described machine: memory, time, fit; or draw a schedule"),
    "plugins": ("apt_jax.cli.plugins", "list, check, trace and begin plugins"),
    "profiles": ("apt_jax.cli.profiles", "list the shipped profiles, or describe one"),
    "quantize": ("apt_jax.cli.quantize", "store a trained model's weights in few bits, and say what that costs"),
    "shardings": ("apt_jax.cli.shardings", "show where each parameter lies and what it costs a device"),
    "tokenizer": ("apt_jax.cli.tokenizer", "train a tokenizer, or show what one does to a text"),
    "vb": ("apt_jax.cli.vb", "Virtual Blackwell: what holds here, and what each mode saves for a config"),
}

INTERRUPTED = 130  # what a shell reports for SIGINT
PIPE_CLOSED = 141  # … and for SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; an AptError becomes one line on standard error and its exit code.

    With APT_JAX_TRACEBACK=1 errors are raised instead, to see where they come from.
    """
    set_up_logging()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except AptError as error:
        if os.environ.get("APT_JAX_TRACEBACK", "0") not in ("", "0"):
            raise
        print(f"apt-jax: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `apt-jax … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left cannot be flushed
        return PIPE_CLOSED


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return 0
    return _find(argv[0])(argv[1:])


def _find(name: str) -> Callable[[list[str]], int]:
    if name in COMMANDS:
        return importlib.import_module(COMMANDS[name][0]).main
    added = _added()
    if name in added:
        return added.resolve(name)
    raise AptError(f"{unknown_name('command', name, (*COMMANDS, *added))}; see apt-jax --help")


def _help() -> str:
    lines = {name: text for name, (_, text) in COMMANDS.items()}
    lines |= {name: f"from plugin '{entry.plugin}'" for name, entry in _added().items() if name not in lines}
    width = max(map(len, lines))
    return "\n".join(
        [
            "usage: apt-jax COMMAND …",
            "",
            *(f"  {name:{width}}  {text}" for name, text in sorted(lines.items())),
            "",
            "apt-jax COMMAND --help says more. Training: python -m apt_jax.main --help",
        ]
    )


def _added() -> Registry:
    """Commands of plugins; a broken plugin takes no command but its own away."""
    return load_plugins(strict=False).registry("commands")
