"""Plugins that do not keep to the contract: refused by name, before anything is written."""

from __future__ import annotations

import textwrap

import pytest

from apt_jax.main import main
from tests.faults.mistakes import Mistake, command_line, lay_out

_ARCHITECTURE = 'def apt_architectures(): return {"mine": "math:sqrt"}'


def plugin(body: str, api: str = '"1"') -> str:
    """A single-file plugin whose hooks are `body`, each after a line `@hookimpl`."""
    head = f"from apt_jax import hookimpl\napt_jax_api = {api}\n@hookimpl\n"
    return head + textwrap.dedent(body).strip().replace("\n\n", "\n@hookimpl\n") + "\n"


def single(name: str, body: str, says: list[str], *argv: str, api: str = '"1"') -> Mistake:
    """One file `plugins/extra.py`."""
    return Mistake(name, ["--plugins_dir=plugins", *argv], says, {"plugins/extra.py": plugin(body, api)})


def installed(name: str, value: str) -> dict[str, str | bytes | None]:
    """The metadata of an installed package `name` with the entry point `extra`."""
    folder = f"site/{name}-1.0.dist-info"
    return {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{folder}/entry_points.txt": f"[apt_jax]\nextra = {value}\n",
    }


MISTAKES = [
    Mistake("not there", ["--plugins=nothere"], ["unknown plugin 'nothere'", "available: ", "install"]),
    Mistake("misspelt", ["--plugins=modle"], ["unknown plugin 'modle' (did you mean 'model'?)"]),
    Mistake("no such folder", ["--plugins_dir=no"], ["plugins.dir: no: no such folder", "name.py"]),
    Mistake("a file as folder", ["--plugins_dir=good.jsonl"], ["plugins.dir: good.jsonl: is not a folder"]),
    Mistake(
        "fails at import, and is asked for",
        ["--plugins_dir=plugins", "--plugins=extra"],
        ["plugin 'extra' (plugins/extra.py): cannot be imported", "ModuleNotFoundError", "nothere", "extra.py:2"],
        {"plugins/extra.py": '"""Mine."""\nimport nothere\n'},
    ),
    Mistake(
        "syntax error, and is asked for",
        ["--plugins_dir=plugins", "--plugins=extra"],
        ["plugin 'extra' (plugins/extra.py): cannot be imported: SyntaxError"],
        {"plugins/extra.py": "def apt_step_end(:\n"},
    ),
    Mistake(
        "exits at import, and is asked for",
        ["--plugins_dir=plugins", "--plugins=extra"],
        ["plugin 'extra' (plugins/extra.py): cannot be imported: SystemExit: 0"],
        {"plugins/extra.py": "raise SystemExit(0)\n"},
    ),
    single("hook name", "def apt_steps_end(step): ...", ["'extra'", "'apt_steps_end' (did you mean 'apt_step_end'?)"]),
    single("hook name like none", "def apt_zzz(): ...", ["plugin 'extra': unknown hook 'apt_zzz'", "extra.py"]),
    single(
        "argument name",
        "def apt_step_end(setp): ...",
        ["apt_step_end: unknown argument 'setp' (did you mean 'step'?)", "it offers: run, step, metrics"],
    ),
    single("default", "def apt_step_end(step=0): ...", ["argument 'step' has a default, so it is never filled"]),
    single("star arguments", "def apt_step_end(**rest): ...", ["argument '**rest' is never filled"]),
    single("async", "async def apt_step_end(step): ...", ["must be a plain function"]),
    Mistake(
        "no hook",
        ["--plugins_dir=plugins"],
        ["plugin 'extra': it implements no hook", "@hookimpl"],
        {"plugins/extra.py": 'apt_jax_api = "1"\n'},
    ),
    single("newer contract", _ARCHITECTURE, ["'extra'", "contract 2, this is 1"], "--plugins=extra", api='"2"'),
    single("no version", _ARCHITECTURE, ["neither a version nor a range"], "--plugins=extra", api='"one"'),
    single("no mapping", "def apt_losses(): return 3", ["apt_losses returned int", "mapping"], "--plugins=extra"),
    single("target", 'def apt_losses(): return {"a": "b"}', ["'a' is 'b'", "module:attribute"], "--plugins=extra"),
    single("built-in name", 'def apt_losses(): return {"cross_entropy": print}', ["'model' and 'extra'", "-extra"]),
    Mistake(
        "one architecture, two plugins",
        ["--plugins_dir=plugins"],
        ["plugins 'a' and 'b' both register the architecture 'mine'", "--plugins=-b"],
        {"plugins/a.py": plugin(_ARCHITECTURE), "plugins/b.py": plugin(_ARCHITECTURE)},
    ),
    Mistake(
        "two plugins, one name",
        ["--plugins_dir=plugins"],
        ["two plugins are named 'extra'", "first-package (math)", "plugins/extra.py", "--plugins=-extra"],
        {"plugins/extra.py": plugin(_ARCHITECTURE), **installed("first-package", "math")},
    ),
    Mistake(
        "two packages, one name",
        [],
        ["two plugins are named 'extra'", "first-package (math)", "second-package (cmath)"],
        {**installed("first-package", "math"), **installed("second-package", "cmath")},
    ),
    Mistake(
        "name of a built-in",
        ["--plugins_dir=plugins"],
        ["plugins/model.py: the plugin name 'model' is built in; rename it"],
        {"plugins/model.py": plugin(_ARCHITECTURE)},
    ),
    single("factory not found", 'def apt_architectures(): return {"mine": "math:nothere"}',
           ["plugin 'extra': architecture 'mine' is 'math:nothere', which cannot be loaded", "nothere"],
           "--config.model.architecture=mine"),
    single("factory fails", _ARCHITECTURE, ["plugin 'extra': architecture 'mine' failed: TypeError"],
           "--config.model.architecture=mine"),
    single("transform fails", "def apt_transform_model(model): 1 / 0",
           ["plugin 'extra': apt_transform_model failed: ZeroDivisionError: division by zero (extra.py:4)"]),
    single("loss terms of wrong type", "def apt_loss_terms(): return 3", ["'extra': apt_loss_terms returned int"]),
    single("unknown mesh axis", 'def apt_sharding_rules(): return {"embed": ("tensr",)}', ["'embed'", "'tensr'"]),
    single("unknown precision", 'def apt_precision_policy(): return "bf17"',
           ["apt_precision_policy", "'bf17'", "fp32, bf16, fp16"]),
    Mistake(
        "one term, two plugins",
        ["--plugins_dir=plugins"],
        ["plugins 'a' and 'b' both give 'term' in apt_loss_terms", "--plugins=-b"],
        dict.fromkeys(
            ("plugins/a.py", "plugins/b.py"), plugin('def apt_loss_terms(): return {"term": lambda m, h, b, c: 0.0}')
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, faults, monkeypatch):
    lay_out(mistake.files)
    monkeypatch.syspath_prepend(str(faults.folder / "site"))
    faults.refused(main, command_line(mistake.argv), mistake.says)


def test_a_term_of_wrong_shape_leaves_nothing_behind(faults, capsys):
    """It is found while the first step is traced, when the run has already said what it will do."""
    term = 'def apt_loss_terms(): return {"t": lambda model, hidden, batch, controls: batch["loss_mask"]}'
    lay_out({"plugins/extra.py": plugin(term)})
    assert main(command_line(["--plugins_dir=plugins", "--workdir=new/run"])) == 2
    err = capsys.readouterr().err
    assert err.startswith("apt_jax: error: loss term 't' returned shape") and err.count("\n") == 1
    assert not (faults.folder / "new").exists()


def test_a_broken_plugin_nobody_asked_for_is_a_warning(faults, caplog):
    lay_out({"plugins/extra.py": "import nothere\n"})
    assert main(command_line(["--plugins_dir=plugins", "--stop_at=1"])) == 0
    assert "plugin 'extra' (plugins/extra.py) is left out: cannot be imported" in caplog.text


def test_a_misspelt_name_mentions_the_plugin_that_may_have_given_it(faults, capsys):
    lay_out({"plugins/extra.py": "import nothere\n"})
    assert main(command_line(["--plugins_dir=plugins", "--config.model.architecture=mine"])) == 2
    err = capsys.readouterr().err
    assert "unknown architecture 'mine'" in err and "plugins not loaded: extra (failed: cannot be imported" in err
