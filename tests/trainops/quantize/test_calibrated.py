"""Methods that look at data: what they are shown, layer by layer, and what becomes of their answers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from apt_jax import hookimpl
from apt_jax.core.errors import ModelError
from apt_jax.core.registry import load_plugins
from apt_jax.model.layers.dense import Dense
from apt_jax.trainops.quantize import calibration_batches, quantize_model
from apt_jax.trainops.quantize.model import flat_params
from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.formats import NVFP4, Int4
from apt_jax.vgpu.quant.stored import CalibratedMethod, find_method, quantize_params, quantize_weight, select
from tests.trainops.quantize.tiny import VOCAB, config_of, decoded, logits, make

B, T = 2, 12
RULES = [("layers/attn/[qo]|layers/mlp/(up|down)", NVFP4())]
WATCHED = ("attn/o", "attn/q", "mlp/down", "mlp/up")  # in the order of the parameters
shown: list[tuple[Any, Any, int]] = []


class Recorder(CalibratedMethod):
    """Rounds to nearest, and keeps what it was shown."""

    def observe(self, x_TK):
        return {"gram": x_TK.T @ x_TK, "size": jnp.sum(jnp.abs(x_TK), 0)}

    def quantize(self, format, w_KN, sums, tokens):
        shown.append((np.asarray(w_KN), jax.device_get(sums), tokens))
        return quantize_weight(w_KN, format)

    def check(self, format):
        if isinstance(format, Int4):
            raise FormatError(f"{format}: not by a recorder")


class Hopeless(Recorder):
    def quantize(self, format, w_KN, sums, tokens):
        raise FormatError("too few tokens")


class Plugin:
    apt_jax_api = "1"

    @hookimpl
    def apt_quant_methods(self):
        return {"hopeless": Hopeless, "no_method": dict, "recorder": Recorder}


PLUGINS = load_plugins(disabled=("*",), extra={"recorder": Plugin()})


def batches(count: int) -> list[dict[str, np.ndarray]]:
    """Rows of two documents, with noise as padding behind them in every second row."""
    rng = np.random.default_rng(0)
    segments = np.repeat([[1] * 5 + [2] * 7, [1] * 8 + [0] * 4], [B // 2, B // 2], 0).astype(np.int32)
    positions = np.array([[*range(5), *range(7)], [*range(8), *[0] * 4]], np.int32)
    return [
        {
            "tokens": rng.integers(0, VOCAB, (B, T), dtype=np.int32),
            "positions": positions,
            "segment_ids": segments,
            "loss_mask": np.ones((B, T), np.float32),
        }
        for _ in range(count)
    ]


def inputs_of(model: Any, given: list[dict[str, np.ndarray]], monkeypatch) -> list[list[dict[str, np.ndarray]]]:
    """[batch][layer] -> path -> inputs [tokens, K] of every Dense, run eagerly and unrolled."""
    names = {id(module.kernel): path for path, module in nnx.iter_modules(model.layers) if isinstance(module, Dense)}
    order = ["/".join(map(str, path)) for path in names.values()]
    seen: list[tuple[tuple[int, ...], np.ndarray]] = []
    plain = Dense.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Dense, "__call__", lambda self, x: (seen.append((self.kernel.shape, x)), plain(self, x))[1])
        found = []
        for batch in given:
            seen.clear()
            model.hidden(batch["tokens"], positions_BT=batch["positions"], segment_ids_BT=batch["segment_ids"])
            counts = batch["segment_ids"] > 0
            calls = [np.asarray(x, np.float64)[counts] for _, x in seen]
            per_layer = len(calls) // model.config.num_layers
            called = ["attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down"]
            assert per_layer == len(called) and sorted(called) == sorted(order)
            found.append([dict(zip(called, calls[i : i + per_layer], strict=True)) for i in range(0, len(calls), 7)])
    return found


@pytest.mark.parametrize("sizes", [{}, {"scan_layers": False}, {"remat_policy": "full"}], ids=str)
def test_sums_are_those_of_the_inputs_that_rounded_layers_give(sizes, monkeypatch):
    shown.clear()
    model, given = make(config_of(**sizes)), batches(3)
    stored = quantize_model(model, RULES, PLUGINS, method="recorder", batches=given)
    assert len(shown) == 2 * len(WATCHED) and {tokens for *_, tokens in shown} == {3 * (12 + 8)}
    for layer in range(2):
        # Layers before this one rounded, this one not yet.
        before = jax.tree.map(
            lambda new, old, layer=layer: new if new.ndim < 2 else jnp.concatenate([new[:layer], old[layer:]]),
            nnx.to_pure_dict(nnx.state(decoded(stored)))["layers"],
            nnx.to_pure_dict(nnx.state(model))["layers"],
        )
        graphdef, state = nnx.split(make(config_of(scan_layers=False)))
        partly = nnx.merge(graphdef, {**nnx.to_pure_dict(state), "layers": before})
        inputs = inputs_of(partly, given, monkeypatch)
        for name, (w_KN, sums, _) in zip(WATCHED, shown[4 * layer : 4 * layer + 4], strict=True):
            x_TK = np.concatenate([found[layer][name] for found in inputs])
            want = {"gram": x_TK.T @ x_TK, "size": np.abs(x_TK).sum(0)}
            for key, value in want.items():
                np.testing.assert_allclose(sums[key], value, rtol=0, atol=2e-5 * np.abs(value).max())
            path = ("layers", *name.split("/"), "kernel")
            np.testing.assert_array_equal(w_KN, flat_params(model)[path][layer])


def test_what_the_method_answers_is_what_is_stored():
    """A recorder rounds to nearest: the same model as without data, here with branches whose layers have biases."""
    model, rules = make(config_of(architecture="apt", num_attention_heads=4)), [("layers/.*", "nvfp4")]
    said: list[str] = []
    stored = quantize_model(model, rules, PLUGINS, method="recorder", batches=batches(1), progress=said.append)
    plain = quantize_model(model, rules, PLUGINS)
    mine, other = flat_params(stored), flat_params(plain)
    assert list(mine) == list(other) and said == ["layer 1 of 2", "layer 2 of 2"]
    assert sum(isinstance(param, QTensor) for param in mine.values()) == 10
    for path, param in mine.items():
        assert jax.tree.structure(param) == jax.tree.structure(other[path])
        jax.tree.map(np.testing.assert_array_equal, param, other[path])
    np.testing.assert_array_equal(logits(stored), logits(plain))


class FourRows:
    """Stands for `Batches` of four rows each: batch i is i."""

    batch_size = 4

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch = per_epoch

    def __len__(self) -> int:
        return self.per_epoch

    def batch(self, step: int) -> int:
        return step


@pytest.mark.parametrize(("per_epoch", "rows", "count"), [(100, 128, 32), (100, 1, 1), (100, 9, 3), (5, 128, 5)])
def test_as_many_batches_as_hold_the_rows(per_epoch, rows, count):
    given: Any = FourRows(per_epoch)
    assert calibration_batches(given, rows) == list(range(count))


@pytest.mark.parametrize(
    ("rules", "method", "count", "error", "message"),
    [
        (RULES, "hopeless", 1, FormatError, r"^layer 0, attn/o: too few tokens$"),
        (RULES, "recorder", 0, ModelError, "no rows to calibrate with"),
        ([("head", NVFP4())], "recorder", 1, ModelError, "^head: only projections under 'layers' are calibrated"),
        ([("layers/.*", Int4())], "recorder", 1, FormatError, "^int4: not by a recorder"),
        (RULES, "no_method", 1, FormatError, "'no_method' of plugin 'recorder' is neither a function nor a subclass"),
    ],
)
def test_what_cannot_be_is_one_line(rules, method, count, error, message):
    model = make(config_of(tie_word_embeddings=False))
    with pytest.raises(error, match=message) as caught:
        quantize_model(model, rules, PLUGINS, method=method, batches=batches(count))
    assert "\n" not in str(caught.value)


def test_a_model_is_needed_and_one_that_runs_layer_by_layer():
    model = make(config_of())
    with pytest.raises(FormatError, match="method recorder needs a model that runs"):
        quantize_params(nnx.to_pure_dict(nnx.state(model)), RULES, PLUGINS, method="recorder")
    assert isinstance(find_method("recorder", PLUGINS), Recorder)
    assert set(select(nnx.to_pure_dict(nnx.state(model)), RULES, PLUGINS)) == {f"layers/{name}" for name in WATCHED}
    whole = nnx.merge(*nnx.split(model))
    whole.advance = None
    with pytest.raises(ModelError, match=r"Decoder lacks advance of apt_jax\.model\.api\.StagedModel"):
        quantize_model(whole, RULES, PLUGINS, method="recorder", batches=batches(1))
