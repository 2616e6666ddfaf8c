"""Finding and loading plugins: choices, faults, and who gets the blame."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import pytest

from apt_jax.core.errors import PluginError
from apt_jax.core.registry import load_plugins
from apt_jax.core.registry.checks import api_problem, violations
from apt_jax.core.registry.sources import BUILT_IN

GOOD = """
from apt_jax import hookimpl
apt_jax_api = "1"
__version__ = "2.5"

@hookimpl
def apt_losses():
    return {"loss_of_NAME": print}
"""

BROKEN = {
    "import": ("import no_such_module\n", r"cannot be imported: Module.*no_such_module.* \(bad.py:1\)"),
    "exit": ("raise SystemExit(0)\n", r"cannot be imported: SystemExit: 0 \(bad.py:1\)"),
    "syntax": ("def f(:\n", r"cannot be imported: SyntaxError: .*\(bad.py, line 1\)"),
    "registering": (
        GOOD.replace("return", "raise RuntimeError('no') #"),
        r"apt_losses failed: RuntimeError: no \(bad.py:8\)",
    ),
    "later contract": (GOOD.replace('= "1"', '= ">=2"'), "it is written for contract >=2, this is 1"),
    "no contract": (GOOD.replace("apt_jax_api", "something"), 'add the line apt_jax_api = "1"'),
    "odd contract": (GOOD.replace('= "1"', '= "~1.0"'), "'~1.0' is neither a version nor a range"),
}

BUILT_INS = {module.split(".")[-2] for module in BUILT_IN}

VIOLATIONS = {
    "hook": ("def apt_step_ned(step): ...", "unknown hook 'apt_step_ned' .did you mean 'apt_step_end'"),
    "argument": (
        "def apt_step_end(stp): ...",
        "unknown argument 'stp' .did you mean 'step'.*offers: run, step, metrics",
    ),
    "no such argument": ("def apt_losses(config): ...", "unknown argument 'config'; it offers: no arguments"),
    "default": ("def apt_step_end(step=None): ...", "'step' has a default, so it is never filled"),
    "keywords": ("def apt_step_end(**kwargs): ...", r"'\*\*kwargs' is never filled"),
    "keyword only": ("def apt_step_end(*, step): ...", "'step' is never filled"),
    "async": ("async def apt_step_end(step): ...", "must be a plain function"),
    "generator": ("def apt_step_end(step): yield", "must be a plain function"),
}


@pytest.fixture(autouse=True)
def _no_installed_plugins(monkeypatch):
    monkeypatch.setenv("APT_JAX_DISABLE_PLUGIN_AUTOLOAD", "1")


def write(folder, name, text=GOOD):
    file = folder / f"{name}.py"
    file.write_text(text.replace("NAME", name))
    return file


def install(folder, name, text=GOOD, dist=None):
    """What an installer leaves behind: a module, metadata, and an entry point."""
    dist = dist or f"apt-{name}"
    module = f"third_party_{dist.replace('-', '_')}"
    write(folder, module, text.replace("NAME", name))
    info = folder / f"{dist.replace('-', '_')}-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(f"[apt_jax]\n{name} = {module}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the module path, with installed plugins switched on."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("APT_JAX_DISABLE_PLUGIN_AUTOLOAD")
    yield folder
    for name in [name for name in sys.modules if name.startswith("third_party_")]:
        del sys.modules[name]


def status(plugins):
    return {info.name: info.status for info in plugins.known}


class TestSingleFiles:
    def test_loaded_with_version_and_digest(self, tmp_path):
        file = write(tmp_path, "mine")
        write(tmp_path, "_helper", "raise SystemExit")
        info = load_plugins(plugins_dir=tmp_path).active[-1]
        assert (info.name, info.origin, info.version, info.status) == ("mine", "file", "2.5", "loaded")
        assert info.file_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert info.hooks == ("apt_losses",)

    def test_leave_nothing_beside_the_file(self, tmp_path):
        write(tmp_path, "mine")
        load_plugins(plugins_dir=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]

    @pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_text("")])
    def test_no_folder(self, tmp_path, make):
        make(tmp_path / "here")
        with pytest.raises(PluginError, match=r"here: .*give a folder of single-file plugins"):
            load_plugins(plugins_dir=tmp_path / "here")


class TestChoice:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("ant", "bee", "cat"):
            write(tmp_path, name)
        write(tmp_path, "tiger", "raise RuntimeError('imported')")
        return tmp_path

    def loaded(self, folder, *enabled, disabled=()):
        plugins = load_plugins(enabled, disabled, folder)
        return {info.name for info in plugins.active} - BUILT_INS

    def test_all_but(self, folder):
        assert self.loaded(folder, disabled=("bee", "tiger")) == {"ant", "cat"}

    def test_exactly_these(self, folder):
        assert self.loaded(folder, "bee") == {"bee"}

    def test_none(self, folder):
        assert self.loaded(folder, disabled=("*",)) == set()

    def test_none_but(self, folder):
        assert self.loaded(folder, "cat", disabled=("*",)) == {"cat"}

    def test_disabled_is_not_imported(self, folder):
        plugins = load_plugins(disabled=("tiger",), plugins_dir=folder)
        assert status(plugins)["tiger"] == "blocked"

    def test_a_built_in_can_be_disabled(self, folder):
        plugins = load_plugins(disabled=("model", "*"), plugins_dir=folder)
        assert not plugins.registry("architectures")

    def test_both(self, folder):
        with pytest.raises(PluginError, match="plugin 'bee' is both enabled and disabled"):
            self.loaded(folder, "bee", disabled=("bee",))

    def test_unknown_enabled(self, folder):
        with pytest.raises(PluginError, match=r"unknown plugin 'bea' .did you mean 'bee'"):
            self.loaded(folder, "bea")

    def test_unknown_disabled_is_only_mentioned(self, folder, caplog):
        self.loaded(folder, disabled=("bea", "tiger"))
        assert "plugin 'bea' is disabled but not installed (did you mean 'bee'?)" in caplog.text


class TestInstalled:
    def test_found_with_its_distribution(self, site):
        install(site, "mine")
        info = load_plugins().active[-1]
        assert (info.name, info.origin, info.dist, info.version) == ("mine", "installed", "apt-mine", "1.2.3")

    def test_autoload_switch(self, site, monkeypatch):
        install(site, "mine")
        monkeypatch.setenv("APT_JAX_DISABLE_PLUGIN_AUTOLOAD", "1")
        assert status(load_plugins())["mine"] == "skipped: APT_JAX_DISABLE_PLUGIN_AUTOLOAD is set"
        assert status(load_plugins(enabled=["mine"]))["mine"] == "loaded"

    def test_two_of_one_name(self, site):
        install(site, "mine", dist="apt-one")
        install(site, "mine", dist="apt-two")
        with pytest.raises(
            PluginError, match=r"two plugins are named 'mine': apt-one .* and apt-two .*--plugins=-mine"
        ):
            load_plugins()
        assert status(load_plugins(disabled=["mine"]))["mine"] == "blocked"

    def test_a_file_and_a_distribution_of_one_name(self, site, tmp_path):
        install(site, "mine")
        write(tmp_path, "mine")
        with pytest.raises(PluginError, match="two plugins are named 'mine'"):
            load_plugins(plugins_dir=tmp_path)

    def test_two_names_for_one_module(self, site):
        install(site, "mine")
        entry = site / "apt_mine-1.2.3.dist-info" / "entry_points.txt"
        entry.write_text(entry.read_text() + "other = third_party_apt_mine\n")
        with pytest.raises(PluginError, match="is the same object as plugin"):
            load_plugins()

    def test_a_package_is_hashed_whole(self, site):
        install(site, "mine")
        (site / "third_party_apt_mine.py").unlink()
        package = site / "third_party_apt_mine"
        package.mkdir()
        write(package, "__init__")
        part = write(package, "part", "x = 1\n")
        before = load_plugins().active[-1].file_sha256
        part.write_text("x = 2\n")
        assert load_plugins().active[-1].file_sha256 != before


class TestBroken:
    @pytest.mark.parametrize("fault", BROKEN)
    def test_left_out_with_a_reason(self, tmp_path, fault, caplog):
        text, reason = BROKEN[fault]
        write(tmp_path, "bad", text)
        write(tmp_path, "good")
        plugins = load_plugins(plugins_dir=tmp_path)
        assert status(plugins)["good"] == "loaded"
        kind = "skipped" if "contract" in fault else "failed"
        assert re.match(f"{kind}: .*{reason}", status(plugins)["bad"])
        assert "bad" not in {info.name for info in plugins.active}
        assert re.search(f"plugin 'bad' .* is left out: .*{reason}", caplog.text)

    @pytest.mark.parametrize("fault", BROKEN)
    def test_stops_the_run_when_named(self, tmp_path, fault):
        text, reason = BROKEN[fault]
        write(tmp_path, "bad", text)
        with pytest.raises(PluginError, match=f"plugin 'bad' .*bad.py.*{reason}") as caught:
            load_plugins(enabled=["bad"], plugins_dir=tmp_path)
        assert "\n" not in str(caught.value)

    def test_half_a_registration_leaves_nothing(self, tmp_path):
        extra = "@hookimpl\ndef apt_optimizers(): raise ValueError\n@hookimpl\ndef apt_step_end(): 1/0\n"
        write(tmp_path, "bad", GOOD + extra)
        plugins = load_plugins(plugins_dir=tmp_path)
        assert "loss_of_bad" not in plugins.registry("losses")
        plugins.observe("apt_step_end", run=None, step=1, metrics={})
        assert plugins._failures.total() == 0

    @pytest.mark.parametrize("fault", VIOLATIONS)
    def test_violations_always_stop(self, tmp_path, fault):
        text, message = VIOLATIONS[fault]
        write(tmp_path, "bad", GOOD + "@hookimpl\n" + text)
        with pytest.raises(PluginError, match=f"plugin 'bad': .*{message}.*bad.py"):
            load_plugins(plugins_dir=tmp_path)
        lenient = load_plugins(plugins_dir=tmp_path, strict=False)
        assert status(lenient)["bad"].startswith("failed: ")
        assert status(load_plugins(disabled=["bad"], plugins_dir=tmp_path))["bad"] == "blocked"

    @pytest.mark.parametrize("options", ["wrapper=True", "hookwrapper=True"])
    def test_wrappers_are_refused(self, tmp_path, options):
        write(tmp_path, "bad", GOOD + f"@hookimpl({options})\ndef apt_loss_terms(config): yield")
        with pytest.raises(PluginError, match="wrappers are not allowed; use tryfirst=True or trylast=True"):
            load_plugins(plugins_dir=tmp_path)

    def test_twice_by_specname(self, tmp_path):
        write(tmp_path, "bad", GOOD + "@hookimpl(specname='apt_losses')\ndef more(): return {}")
        with pytest.raises(PluginError, match="apt_losses is implemented more than once"):
            load_plugins(plugins_dir=tmp_path)

    def test_no_hook_at_all(self, tmp_path):
        write(tmp_path, "bad", 'apt_jax_api = "1"')
        with pytest.raises(PluginError, match="plugin 'bad': it implements no hook"):
            load_plugins(plugins_dir=tmp_path)

    def test_forgotten_marker(self, tmp_path, caplog):
        write(tmp_path, "mine", GOOD + "def apt_step_end(step): ...")
        load_plugins(plugins_dir=tmp_path)
        assert (
            "plugin 'mine': apt_step_end is not marked with @hookimpl and will never be called" in caplog.text
        )

    def test_same_registered_name(self, tmp_path):
        write(tmp_path, "one", GOOD.replace("loss_of_NAME", "focal"))
        write(tmp_path, "two", GOOD.replace("loss_of_NAME", "focal"))
        with pytest.raises(
            PluginError, match=r"plugins 'one' and 'two' both register the loss 'focal'.*-two"
        ):
            load_plugins(plugins_dir=tmp_path)
        assert status(load_plugins(plugins_dir=tmp_path, disabled=["two"]))["one"] == "loaded"


def test_specname_and_optional_hooks():
    text = GOOD + "@hookimpl(optionalhook=True)\ndef apt_of_the_future(x): ...\n"
    module = type(sys)("m")
    exec(text + "@hookimpl(specname='apt_step_end')\ndef watch(step): ...\n", module.__dict__)
    info = load_plugins(extra={"m": module}).active[-1]
    assert info.hooks == ("apt_losses", "apt_step_end")


def test_a_class_is_not_a_plugin():
    class Mine:
        apt_jax_api = "1"

    assert violations(Mine) == ["it is the class Mine; point to a module or to an instance"]


@pytest.mark.parametrize(
    ("declared", "fits"),
    [
        *((text, True) for text in ("1", "==1", ">=1,<2", "<=1", ">0", "!=2", " >= 1 , < 3 ")),
        *((text, False) for text in ("2", ">=2", ">=1,!=1", "<1", "", "1.0", "one", ">=1,")),
    ],
)
def test_contract_ranges(declared, fits):
    assert (api_problem(declared) is None) is fits


def test_loading_imports_no_jax():
    code = "import sys, apt_jax.core.registry as r; r.load_plugins(disabled=['*']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "jaxlib", "flax", "numpy", "optax", "grain"} & set(done.stdout.split())
