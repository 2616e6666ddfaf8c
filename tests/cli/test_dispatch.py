"""`apt-jax`: finding commands, one-line errors, and answering without jax."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import apt_jax
from apt_jax import cli
from apt_jax.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
HEAVY = {"jax", "jaxlib", "flax", "numpy", "optax", "orbax", "grain", "tokenizers"}

COMMAND_PLUGIN = """
from apt_jax import hookimpl
apt_jax_api = "1"

def hello(argv):
    print("hello", *argv)
    return 7

@hookimpl
def apt_commands():
    return {"hello": hello}
"""


@pytest.fixture(autouse=True)
def _no_installed_plugins(monkeypatch):
    monkeypatch.setenv("APT_JAX_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def with_hello(tmp_path, monkeypatch):
    """A plugin with a command, found as if it were installed."""
    (tmp_path / "hello.py").write_text(COMMAND_PLUGIN)
    load = cli.load_plugins
    monkeypatch.setattr(cli, "load_plugins", lambda **options: load(plugins_dir=tmp_path, **options))


@pytest.mark.parametrize(
    "argv", [["--help"], ["plugins", "list"], ["plugins", "list", "--json"], ["--version"]]
)
def test_light_commands_import_no_jax(argv):
    code = f"import sys, apt_jax.cli as c; c.main({argv}); print(*sys.modules, file=sys.stderr)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"{' '.join(argv)}: {time.perf_counter() - started:.2f} s")
    assert done.stdout
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_explains_itself(name, capsys):
    module, text = COMMANDS[name]
    spec = importlib.util.find_spec(module)
    assert spec is not None and text
    try:
        code = main([name, "--help"])
    except SystemExit as done:  # argparse ends so
        code = done.code
    assert code == 0
    assert name in capsys.readouterr().out


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text and line in text for name, (_, line) in COMMANDS.items())


def test_unknown_command(capsys):
    assert main(["plugin"]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith(
        "apt-jax: error: unknown command 'plugin' (did you mean 'plugins'?); available: "
    )
    assert out.err.count("\n") == 1


def test_wrong_option_is_one_line(capsys):
    assert main(["plugins", "list", "--jsno"]) == 2
    assert capsys.readouterr().err == (
        "apt-jax: error: apt-jax plugins list: unrecognized arguments: --jsno; "
        "see apt-jax plugins list --help\n"
    )


def test_commands_of_plugins(with_hello, capsys):
    assert main(["hello", "you"]) == 7
    assert capsys.readouterr().out == "hello you\n"
    assert main(["--help"]) == 0
    assert re.search(r"^  hello +from plugin 'hello'$", capsys.readouterr().out, re.MULTILINE)


def test_traceback_on_demand(monkeypatch):
    monkeypatch.setenv("APT_JAX_TRACEBACK", "1")
    with pytest.raises(cli.AptError):
        main(["plugin"])


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (ValueError, None)])
def test_other_exceptions(monkeypatch, error, code):
    def fail(argv):
        raise error

    monkeypatch.setattr(cli, "_find", lambda name: fail)
    if code is None:
        with pytest.raises(error):
            main(["x"])
    else:
        assert main(["x"]) == code


def test_closed_pipe_is_quiet():
    code = "from apt_jax.cli import main; import sys; sys.exit(main(['config', 'keys']))"
    done = subprocess.run(
        f'"{sys.executable}" -c "{code}" | head -n 1; exit ${{PIPESTATUS[0]}}',
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_module_and_script_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"]["apt-jax"] == "apt_jax.__main__:main"
    assert project["version"] == apt_jax.__version__
    done = subprocess.run(
        [sys.executable, "-m", "apt_jax", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, f"{apt_jax.__version__}\n")


class TestPublicNames:
    def test_importing_the_package_is_light(self):
        code = "import sys, apt_jax; dir(apt_jax); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not HEAVY & set(done.stdout.split())

    @pytest.mark.parametrize("name", apt_jax.__all__)
    def test_exists(self, name):
        assert getattr(apt_jax, name) is not None
        assert name in dir(apt_jax)

    def test_unknown(self):
        with pytest.raises(AttributeError, match="module 'apt_jax' has no attribute 'Trainr'"):
            _ = apt_jax.Trainr
