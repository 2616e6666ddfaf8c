"""The contract is complete, documented, and changes only visibly."""

from __future__ import annotations

import inspect
from pathlib import Path

import pluggy
import pytest

from apt_jax.core import hookspecs
from apt_jax.core.hookspecs import COMBINE, KINDS

GOLDEN = Path(__file__).parents[1] / "golden" / "hooks.txt"


def _line(hook: str) -> str:
    how = f" ({COMBINE[hook]})" if hook in COMBINE else ""
    return f"{KINDS[hook]}{how} {hook}{inspect.signature(getattr(hookspecs, hook))}".replace("'", "")


def test_golden_list():
    """A changed hook is a changed contract: edit the list on purpose, and think of API_VERSION."""
    assert [_line(hook) for hook in KINDS] == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_every_specification_has_a_kind():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    specified = {name for name in vars(manager.hook) if name.startswith("apt_")}
    assert specified == set(KINDS)
    assert set(COMBINE) == {hook for hook, kind in KINDS.items() if kind == "transform"}


@pytest.mark.parametrize("hook", KINDS)
def test_documented(hook):
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    assert len(text.splitlines()[0]) > 20
    assert "\nExample: `" in text
    if KINDS[hook] == "register":
        assert "\nTarget: `" in text


@pytest.mark.parametrize("hook", [hook for hook, kind in KINDS.items() if kind == "register"])
def test_register_examples_are_accepted(hook):
    """The documented return value passes the check that real plugins pass."""
    from apt_jax.core.registry.entries import read_targets

    example = (inspect.getdoc(getattr(hookspecs, hook)) or "").partition("Example: `return ")[2].rstrip("`")
    assert read_targets("example", hook, eval(example))


def test_first_only_where_declared():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    first = {hook for hook in KINDS if getattr(manager.hook, hook).spec.opts["firstresult"]}
    assert first == {"apt_remat_policy", "apt_precision_policy"}
