"""Asking loaded plugins: registries, transforms, observers."""

from __future__ import annotations

import json
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax import hookimpl
from apt_jax.core.config.schema import Config
from apt_jax.core.errors import PluginError
from apt_jax.core.hookspecs import KINDS
from apt_jax.core.registry import HookCall, compare_records, load_plugins, on_hookcall
from apt_jax.core.registry.sources import BUILT_IN

CONFIG = Config()
BUILT_INS = [module.split(".")[-2] for module in BUILT_IN]


@pytest.fixture(autouse=True)
def _only_what_the_test_gives(monkeypatch):
    monkeypatch.setenv("APT_JAX_DISABLE_PLUGIN_AUTOLOAD", "1")


def plugin(**functions):
    """A plugin object from functions; each is marked unless it is already."""
    module = types.SimpleNamespace(apt_jax_api="1")
    for name, function in functions.items():
        setattr(module, name, function if hasattr(function, "apt_jax_impl") else hookimpl(function))
    return module


def load(**plugins):
    return load_plugins(extra=plugins)


class TestRegistry:
    def test_factory_and_text_resolve(self):
        def build():
            return 1

        registry = load(
            a=plugin(apt_losses=lambda: {"mine": build}),
            b=plugin(apt_losses=lambda: {"join": "os.path:join"}),
        ).registry("losses")
        import os

        assert registry.resolve("mine") is build
        assert registry.resolve("join") is os.path.join
        assert registry["mine"].plugin == "a"
        assert list(registry) == sorted(registry)

    def test_built_ins_are_listed_without_being_imported(self):
        registry = load_plugins(disabled=["*"]).registry("architectures")
        assert {"apt", "llama", "qwen3"} <= set(registry)
        assert all(isinstance(entry.target, str) for entry in registry.values())

    def test_every_register_hook_has_a_registry(self):
        plugins = load()
        for hook, kind in KINDS.items():
            if kind == "register":
                assert plugins.registry(hook.removeprefix("apt_")).kind

    def test_unknown_name(self):
        with pytest.raises(
            PluginError, match=r"unknown architecture 'lama' \(did you mean 'llama'\?\); available"
        ):
            load().registry("architectures").resolve("lama")

    def test_unknown_registry(self):
        with pytest.raises(PluginError, match=r"unknown registry 'optimisers'.*did you mean 'optimizers'"):
            load().registry("optimisers")

    def test_unknown_name_mentions_plugins_that_are_missing(self, tmp_path):
        (tmp_path / "gone.py").write_text("import no_such_module\n")
        registry = load_plugins(plugins_dir=tmp_path).registry("losses")
        with pytest.raises(
            PluginError, match=r"unknown loss 'x'.*plugins not loaded: gone .failed: .*no_such_module"
        ):
            registry.resolve("x")

    @pytest.mark.parametrize("target", ["no_such_module:x", "os.path:no_such_attribute"])
    def test_text_that_leads_nowhere(self, target):
        registry = load(mine=plugin(apt_losses=lambda: {"x": target})).registry("losses")
        with pytest.raises(
            PluginError, match=f"plugin 'mine': loss 'x' is '{target}', which cannot be loaded: .*no_such"
        ):
            registry.resolve("x")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["x"], "returned list; return a mapping"),
            ({"x": "no colon"}, "'x' is 'no colon'; give a callable or 'module:attribute'"),
            ({"x": 3}, "'x' is 3"),
            ({"two words": print}, "gives the name 'two words'"),
            ({3: print}, "gives the name 3"),
        ],
    )
    def test_wrong_answers(self, given, message):
        with pytest.raises(PluginError, match=f"plugin 'mine'.*{message}"):
            load(mine=plugin(apt_losses=lambda: given))

    def test_one_name_twice_names_both(self):
        both = {name: plugin(apt_losses=lambda: {"focal": print}) for name in ("first", "second")}
        with pytest.raises(PluginError, match="'first' and 'second' both register the loss 'focal'"):
            load(**both)

    def test_a_built_in_name_is_taken(self):
        with pytest.raises(PluginError, match="'model' and 'mine' both register the architecture 'llama'"):
            load(mine=plugin(apt_architectures=lambda: {"llama": print}))


class TestTransform:
    def test_chain_passes_the_value_on(self):
        plugins = load(
            a=plugin(apt_transform_model=lambda model, config: [*model, "a"]),
            b=plugin(apt_transform_model=lambda model: None),
            c=plugin(apt_transform_model=lambda model: [*model, "c"]),
        )
        assert plugins.transform("apt_transform_model", [], config=CONFIG, plugins=plugins) == ["a", "c"]
        assert plugins.transform("apt_transform_model", model=["x"], config=CONFIG, plugins=plugins) == ["x", "a", "c"]

    def test_chain_without_plugins_is_the_identity(self):
        value = object()
        assert load().transform("apt_transform_optimizer", value, config=CONFIG) is value

    def test_merge(self):
        plugins = load(
            a=plugin(apt_loss_terms=lambda config: {"x": 1}),
            b=plugin(apt_loss_terms=lambda: None),
            c=plugin(apt_loss_terms=lambda: {"y": 2}),
        )
        assert plugins.transform("apt_loss_terms", config=CONFIG) == {"x": 1, "y": 2}

    def test_merge_refuses_one_key_twice(self):
        plugins = load(a=plugin(apt_loss_terms=lambda: {"x": 1}), b=plugin(apt_loss_terms=lambda: {"x": 1}))
        with pytest.raises(PluginError, match="'a' and 'b' both give 'x' in apt_loss_terms"):
            plugins.transform("apt_loss_terms", config=CONFIG)

    def test_concatenate(self):
        plugins = load(b=plugin(apt_quant_rules=lambda: [3]), a=plugin(apt_quant_rules=lambda: (1, 2)))
        assert plugins.transform("apt_quant_rules", config=CONFIG) == [1, 2, 3]

    @pytest.mark.parametrize(
        ("hook", "answer"),
        [("apt_loss_terms", ["x"]), ("apt_quant_rules", "x"), ("apt_quant_rules", {"x": 1})],
    )
    def test_wrong_answers(self, hook, answer):
        plugins = load(mine=plugin(**{hook: lambda: answer}))
        with pytest.raises(PluginError, match=f"plugin 'mine': {hook} returned {type(answer).__name__}"):
            plugins.transform(hook, config=CONFIG)

    def test_first_answer_wins_and_the_rest_is_not_asked(self):
        asked = []
        plugins = load(
            a=plugin(apt_remat_policy=lambda name: asked.append("a")),
            b=plugin(apt_remat_policy=lambda name: asked.append("b") or name.upper()),
            c=plugin(apt_remat_policy=lambda name: asked.append("c") or "never"),
        )
        assert plugins.transform("apt_remat_policy", name="mine") == "MINE"
        assert asked == ["a", "b"]
        assert load().transform("apt_remat_policy", name="mine") is None

    @pytest.mark.parametrize(
        "error", [ValueError("bad\nthing"), SystemExit(3), KeyError("k"), RecursionError()]
    )
    def test_failure_names_the_plugin_and_the_place(self, error):
        def apt_loss_terms(config):
            raise error

        plugins = load(mine=plugin(apt_loss_terms=apt_loss_terms))
        with pytest.raises(
            PluginError, match=r"plugin 'mine': apt_loss_terms failed: .*\(test_registry.py:\d+\)"
        ) as caught:
            plugins.transform("apt_loss_terms", config=CONFIG)
        assert caught.value.__cause__ is error
        assert "\n" not in str(caught.value)

    def test_keyboard_interrupt_passes(self):
        def apt_loss_terms(config):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            load(mine=plugin(apt_loss_terms=apt_loss_terms)).transform("apt_loss_terms", config=CONFIG)

    @pytest.mark.parametrize(
        ("hook", "arguments"),
        [
            ("apt_loss_terms", {}),
            ("apt_loss_terms", {"config": 1, "more": 2}),
            ("apt_step_end", {}),
            ("apt_x", {}),
        ],
    )
    def test_the_host_must_call_it_right(self, hook, arguments):
        with pytest.raises(TypeError, match="apt_"):
            load().transform(hook, **arguments)

    def test_raw_answers(self):
        plugins = load(a=plugin(apt_loss_terms=lambda: {"x": 1}), b=plugin(apt_loss_terms=lambda: {"x": 2}))
        assert plugins.hook.apt_loss_terms(config=CONFIG) == [{"x": 1}, {"x": 2}]
        assert plugins.hook.apt_remat_policy(name="x") is None
        with pytest.raises(AttributeError, match="apt_loss_terms"):
            _ = plugins.hook.apt_loss_term


class TestObserve:
    def test_any_subset_of_the_arguments(self):
        seen = []
        plugins = load(
            a=plugin(apt_step_end=lambda metrics, step: seen.append((step, metrics["loss"]))),
            b=plugin(apt_step_end=lambda run: seen.append(run)),
        )
        plugins.observe("apt_step_end", run="the run", step=3, metrics={"loss": 1.5})
        assert seen == [(3, 1.5), "the run"]

    @pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(1)])
    def test_three_failures_and_it_is_dropped(self, error, caplog):
        tried, seen = [], []

        def apt_step_end(step):
            tried.append(step)
            raise error

        plugins = load(
            bad=plugin(apt_step_end=apt_step_end), good=plugin(apt_step_end=lambda step: seen.append(step))
        )
        for step in range(1, 6):
            assert not plugins.dropped or step > 3
            plugins.observe("apt_step_end", run=None, step=step, metrics={})
        assert tried == [1, 2, 3]
        assert seen == [1, 2, 3, 4, 5]
        assert plugins.dropped == ("bad",)
        assert [record.getMessage().partition("; failure ")[2] for record in caplog.records] == [
            "1 of 3, the run goes on", "2 of 3, the run goes on", "3 of 3, no longer called"
        ]  # fmt: skip
        assert "plugin 'bad': apt_step_end failed" in caplog.text

    def test_failures_count_over_all_its_observers(self):
        def fail():
            raise ValueError

        calls = []
        plugins = load(bad=plugin(apt_step_end=fail, apt_eval_end=fail, apt_failure=lambda: calls.append(1)))
        for hook in ("apt_step_end", "apt_eval_end", "apt_step_end"):
            plugins.observe(hook, run=None, step=1, metrics={})
        plugins.observe("apt_failure", run=None, error=None)
        assert not calls

    def test_only_observers(self):
        with pytest.raises(TypeError, match="unknown observe hook 'apt_loss_terms'"):
            load().observe("apt_loss_terms", config=CONFIG)


def _recorder(name, calls, **options):
    @hookimpl(**options)
    def apt_step_end():
        calls.append(name)

    return plugin(apt_step_end=apt_step_end)


NAMES = st.lists(st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True), min_size=1, max_size=6, unique=True)
PLACES = st.sampled_from(["first", "middle", "last"])


@settings(max_examples=30, deadline=None)  # each loads the plugins anew
@given(data=st.data(), names=NAMES)
def test_order_does_not_depend_on_the_order_of_registration(data, names):
    """Calls go: tryfirst by name, the others by name, trylast by name reversed."""
    names = [name for name in names if name not in BUILT_INS]
    places = {name: data.draw(PLACES) for name in names}
    calls: list[str] = []
    options = {"first": {"tryfirst": True}, "middle": {}, "last": {"trylast": True}}
    shuffled = data.draw(st.permutations(names))
    plugins = load(**{name: _recorder(name, calls, **options[places[name]]) for name in shuffled})
    plugins.observe("apt_step_end", run=None, step=1, metrics={})
    by_place = {place: sorted(n for n in names if places[n] == place) for place in options}
    assert calls == [*by_place["first"], *by_place["middle"], *reversed(by_place["last"])]
    assert [info.name for info in plugins.active] == [*BUILT_INS, *sorted(names)]
    assert [info.order for info in plugins.active] == list(range(len(plugins.active)))


class TestRecords:
    def test_json_and_fingerprint(self):
        plugins = load(a=plugin(apt_step_end=lambda: None))
        records = plugins.as_records()
        assert json.loads(json.dumps(records)) == records
        assert [record["name"] for record in records] == [*BUILT_INS, "a"]
        assert all(len(record["file_sha256"]) in (0, 64) for record in records)
        assert plugins.fingerprint() == load(a=plugin(apt_step_end=lambda: None)).fingerprint()
        assert plugins.fingerprint() != load().fingerprint()

    def test_compare(self):
        def record(name, order, version="1", digest="aa"):
            return {"name": name, "order": order, "version": version, "file_sha256": digest, "dist": ""}

        old = [record("a", 0), record("b", 1), record("c", 2), record("d", 3), record("e", 4)]
        new = [
            record("b", 0, "2"),
            record("a", 1),
            record("c", 2, digest="bb"),
            record("f", 3),
            record("e", 4),
        ]
        assert compare_records(old, old) == []
        assert compare_records(old, new) == [
            "plugin 'b': version was 1, is 2",
            "plugin 'c': its code changed, its version did not",
            "plugin 'd': was active, is not",
            "plugin 'f': was not active, is now",
            "plugin order: was a, b, c, e; is b, a, c, e",
        ]


def test_listeners_hear_every_call():
    heard: list[HookCall] = []

    def fail(step):
        raise ValueError("x")

    with on_hookcall(heard.append):
        plugins = load(mine=plugin(apt_losses=lambda: {"x": print}, apt_step_end=fail))
        plugins.observe("apt_step_end", run=None, step=1, metrics={})
    plugins.observe("apt_step_end", run=None, step=2, metrics={})
    mine = [each for each in heard if each.plugin == "mine"]
    assert [each.hook for each in mine] == ["apt_losses", "apt_step_end"]
    assert mine[0].result == {"x": print}
    assert isinstance(mine[1].error, ValueError)
    assert all(each.seconds >= 0 for each in mine)
