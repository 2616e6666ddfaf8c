"""`apt-jax plugins list | check | trace | new`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apt_jax.cli import main
from apt_jax.cli.plugins.check import examine
from apt_jax.cli.plugins.new import KINDS, create
from apt_jax.cli.plugins.trace import Tally, report, summary
from apt_jax.core.errors import PluginError
from apt_jax.core.registry import HookCall, load_plugins
from apt_jax.core.registry.sources import BUILT_IN, single_file

ROOT = Path(__file__).parents[2]
BUILT_INS = [module.split(".")[-2] for module in BUILT_IN]
GOOD = """
from apt_jax import hookimpl
apt_jax_api = "1"

@hookimpl
def apt_loss_terms(config):
    return None

@hookimpl
def apt_losses():
    return {"mine": "os.path:join"}

@hookimpl
def apt_step_end(step):
    pass
"""

SIDE_EFFECTS = {
    "environ": ("import os; os.environ['APT_JAX_TEST_X'] = '1'", "error: changes the environment"),
    "cwd": ("import os; os.chdir('/')", "error: changes the working directory"),
    "python": ("import random; random.random()", "error: draws from or seeds Python's random numbers"),
    "numpy_rng": ("import numpy; numpy.random.seed(0)", "error: draws from or seeds numpy's random numbers"),
    "jax_config": ("import jax; jax.config.update('jax_debug_nans', True)", "error: changes jax.config"),
    "array": (
        "import jax.numpy; table = jax.numpy.zeros(3)",
        "error: makes jax arrays, which takes hold of devices",
    ),
    "signals": (
        "import signal; signal.signal(signal.SIGTERM, lambda *a: None)",
        "error: changes signal handlers",
    ),
    "path": ("import sys; sys.path.append('apt_jax_test_x')", "warning: changes sys.path"),
    "filters": (
        "import warnings; warnings.simplefilter('ignore', ImportWarning)",
        "warning: changes the warnings filters",
    ),
    "log": ("import logging; logging.root.setLevel(7)", "warning: changes logging"),
    "thread": (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "warning: starts threads",
    ),
}


@pytest.fixture(autouse=True)
def _no_installed_plugins(monkeypatch):
    monkeypatch.setenv("APT_JAX_DISABLE_PLUGIN_AUTOLOAD", "1")


class TestList:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "good.py").write_text(GOOD)
        (tmp_path / "typo.py").write_text(
            GOOD.replace("apt_step_end", "apt_step_ned").replace("mine", "other")
        )
        (tmp_path / "broken.py").write_text("1/0")
        return tmp_path

    def test_table(self, folder, capsys):
        assert main(["plugins", "list", f"--plugins_dir={folder}"]) == 0
        out = capsys.readouterr()
        rows = {line.split()[0]: line for line in out.out.splitlines()}
        assert list(rows) == ["name", *BUILT_INS, "broken", "good", "typo"]
        assert rows["good"].split()[1:] == ["-", "file", "loaded", "loss_terms,", "losses,", "step_end"]
        assert "failed: cannot be imported: ZeroDivisionError" in rows["broken"]
        assert "failed: unknown hook 'apt_step_ned' (did you mean 'apt_step_end'?)" in rows["typo"]
        assert out.err == ""

    def test_json(self, folder, capsys):
        assert main(["plugins", "list", "--json", f"--plugins_dir={folder}", "--plugins=good"]) == 0
        found = {info["name"]: info for info in json.loads(capsys.readouterr().out)}
        assert found["good"]["hooks"] == ["apt_loss_terms", "apt_losses", "apt_step_end"]
        assert found["good"]["order"] == len(BUILT_INS)
        assert found["broken"]["status"] == "skipped: not among the enabled plugins"

    @pytest.mark.parametrize(
        ("plugins", "loaded"), [("none", []), ("-good", []), ("good", ["good"]), ("good,-typo", ["good"])]
    )
    def test_selection(self, folder, capsys, plugins, loaded):
        assert main(["plugins", "list", "--json", f"--plugins_dir={folder}", f"--plugins={plugins}"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [i["name"] for i in found if i["status"] == "loaded"] == [*BUILT_INS, *loaded]

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ("--plugins=a,", "an empty name"),
            ("--plugins=-", "an empty name"),
            ("--plugins=god", "unknown plugin 'god' (did you mean 'good'?)"),
        ],
    )
    def test_mistakes(self, folder, capsys, option, message):
        assert main(["plugins", "list", f"--plugins_dir={folder}", option]) == 2
        assert message in capsys.readouterr().err

    def test_unknown_action(self, capsys):
        assert main(["plugins", "lst"]) == 2
        assert "unknown action 'lst' (did you mean 'list'?)" in capsys.readouterr().err


class TestCheck:
    def examine(self, tmp_path, text, name="mine"):
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        return examine(single_file(file))

    def test_good(self, tmp_path):
        finding = self.examine(tmp_path, GOOD)
        assert finding.errors == finding.warnings == []
        assert finding.hooks == ("apt_loss_terms", "apt_losses", "apt_step_end")
        assert set(finding.seconds) == {"import", "apt_loss_terms", "apt_losses"}

    def test_built_ins_are_good_and_all_their_targets_exist(self, capsys):
        assert main(["plugins", "check"]) == 0, capsys.readouterr().out
        assert "model (apt_jax.model.plugin): ok" in capsys.readouterr().out

    def test_side_effects(self, tmp_path):
        for name, (statement, _) in SIDE_EFFECTS.items():
            (tmp_path / f"{name}.py").write_text(f"{statement}\n{GOOD.replace('mine', name)}")
        # In a process of its own: the point of these is that they cannot all be undone.
        done = subprocess.run(
            [sys.executable, "-m", "apt_jax", "plugins", "check", f"--plugins_dir={tmp_path}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        found = {}
        for line in done.stdout.splitlines():
            if not line.startswith(" "):
                name = line.split()[0]
            elif "importing it" in line:
                found[name] = line.strip().replace("importing it ", "")
        assert found == {name: effect for name, (_, effect) in SIDE_EFFECTS.items()}

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("apt_step_end", "apt_step_ned", "unknown hook 'apt_step_ned' (did you mean 'apt_step_end'?)"),
            ("(step)", "(stpe)", "apt_step_end: unknown argument 'stpe' (did you mean 'step'?)"),
            ('api = "1"', 'api = "7"', "it is written for contract 7, this is 1"),
            (
                "os.path:join",
                "os.path:jion",
                "loss 'mine' is 'os.path:jion', which cannot be loaded: AttributeError",
            ),
            ("return None", "raise ValueError('no')", "apt_loss_terms failed: ValueError: no (mine.py:7)"),
            ("mine", "cross_entropy", "'model' and 'mine' both register the loss 'cross_entropy'"),
            ("import hookimpl", "import hookimpl, nothing", "cannot be imported: ImportError"),
        ],
    )
    def test_errors(self, tmp_path, old, new, message):
        finding = self.examine(tmp_path, GOOD.replace(old, new))
        assert [error for error in finding.errors if message in error], finding.errors

    def test_warnings(self, tmp_path):
        finding = self.examine(tmp_path, f"{GOOD}\ndef apt_eval_end(step): pass\n")
        assert finding.errors == []
        assert finding.warnings == ["apt_eval_end is not marked with @hookimpl and will never be called"]

    @pytest.mark.parametrize(
        ("what", "message"), [("nowhere.py", "no such file"), ("modle", "did you mean 'model'")]
    )
    def test_unknown(self, capsys, what, message):
        assert main(["plugins", "check", what]) == 2
        assert message in capsys.readouterr().err


class TestTrace:
    def test_report(self):
        tallies: dict[tuple[str, str], Tally] = {}
        for seconds, error in ((0.001, None), (0.003, ValueError("no"))):
            call = HookCall("apt_step_end", "mine", seconds, None, error)
            tallies.setdefault((call.hook, call.plugin), Tally()).add(call)
        assert report(tallies).splitlines()[1].split() == [
            "apt_step_end", "mine", "2", "2000.0", "4.00", "1", "ValueError:", "no"
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("result", "text"),
        [(None, "None"), ({"a": 1, "b": 2}, "{a, b}"), ([1, 2], "list of 2"), (object(), "object"),
         ("x" * 99, "'" + "x" * 58 + "…")],
    )  # fmt: skip
    def test_summary(self, result, text):
        assert summary(result) == text

    def test_table_is_printed_when_the_run_fails(self, tmp_path, capsys):
        (tmp_path / "mine.py").write_text(GOOD)
        code = main(
            ["plugins", "trace", "--", "--config=playground", f"--plugins_dir={tmp_path}",
             "--config.data.source=nosuch", "--config.data.path=nosuch.txt"]
        )  # fmt: skip
        out = capsys.readouterr()
        assert code == 2
        assert "unknown dataset 'nosuch'" in out.err
        assert "\napt_losses  " in out.out


class TestNew:
    @pytest.mark.parametrize("kind", KINDS)
    def test_begins_without_errors(self, tmp_path, monkeypatch, kind):
        target = create("my-own", kind, tmp_path)
        file = target if kind == "single-file" else target / "my_own.py"
        plugins = load_plugins(enabled=["my_own"], plugins_dir=file.parent)
        assert plugins.active[-1].name == "my_own"
        texts = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
        assert not any("@MODULE@" in text or "@NAME@" in text or "@WHAT@" in text for text in texts)

    @pytest.mark.slow
    def test_generated_tests_pass(self, tmp_path):
        targets = [create(f"my-{kind}", kind, tmp_path) for kind in KINDS if kind != "single-file"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *targets]))}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
            capture_output=True, text=True, env=env, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert "9 passed" in done.stdout

    def test_refuses_to_overwrite(self, tmp_path, capsys):
        assert main(["plugins", "new", "my-own", f"--dir={tmp_path}"]) == 0
        (tmp_path / "my-own" / "my_own.py").write_text("mine")
        assert main(["plugins", "new", "my-own", f"--dir={tmp_path}"]) == 2
        assert "exists and is not overwritten" in capsys.readouterr().err
        assert (tmp_path / "my-own" / "my_own.py").read_text() == "mine"

    @pytest.mark.parametrize(
        "name",
        ["", "My-own", "9lives", "a--b", "a b", "../up", "class", "x" * 41, "a_", "none", "model", "json"],
    )
    def test_names(self, tmp_path, name):
        with pytest.raises(PluginError, match=f"plugin name '{name}': "):
            create(name, "observer", tmp_path)
        assert not list(tmp_path.iterdir())
