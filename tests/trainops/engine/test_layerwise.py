"""A state in host memory: the same numbers as on the device, whatever the optimizer, the batch and the mesh."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apt_jax.core import schedules
from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError, ModelError
from apt_jax.model.optim import optimizers
from apt_jax.vgpu.memory.states.optimizers import adamw8bit
from tests.trainops.engine import tiny

OPTIMIZER = {"optimizer/layers/.*": "pinned_host"}
STATE = {"(params|optimizer)/layers/.*": "pinned_host"}
# Wide enough for 8-bit moments of a single layer.
MODEL = replace(tiny.MODEL, remat_policy="full", hidden_size=64, intermediate_size=128)
FSDP = DistributedConfig(strategy="fsdp")


def maker(factory, training):
    def make(groups, clip=True):
        given = training if clip else replace(training, gradient_clipping=None)
        chosen = factory(training, schedules.cosine(training), groups)
        return optax.chain(optimizers.gradient_transforms(given, groups), chosen)

    return make


def train(memory, factory=optimizers.adamw, *, remat="full", devices=1, steps=3, **changes):
    training = tiny.with_training(**changes)
    program, params = tiny.make_program(
        training, model=replace(MODEL, remat_policy=remat), memory=memory, devices=devices,
        distributed=FSDP if devices > 1 else None, make_optimizer=maker(factory, training),
    )  # fmt: skip
    state, losses = tiny.run(program, params, steps)
    return program, state, losses


def kinds_of(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
    ("memory", "remat", "factory", "devices", "changes"),
    [
        pytest.param(OPTIMIZER, "weights", optimizers.adamw, 1, {}, id="moments"),
        pytest.param(STATE, "full", optimizers.adamw, 1, {}, id="state"),
        pytest.param(STATE, "offload", optimizers.muon, 1, {}, id="all, muon"),
        pytest.param(STATE, "offload", adamw8bit, 1, {"gradient_clipping": None}, id="all, 8 bit, no clip"),
        pytest.param(STATE, "offload", optimizers.adamw, 4, {"gradient_accumulation_steps": 2}, id="all, fsdp, parts"),
        pytest.param(STATE, "full", optimizers.sgd, 1, {"gradient_accumulation_steps": 2}, id="state, sgd, parts"),
    ],
)
def test_the_numbers_are_those_of_the_device(memory, remat, factory, devices, changes):
    plain, expected, losses = train(None, factory, devices=devices, **changes)
    program, state, found = train(memory, factory, remat=remat, devices=devices, **changes)
    assert program.traces == {"train_step": 1}
    np.testing.assert_allclose(found, losses, rtol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    assert kinds_of(state.params["layers"]) == {"pinned_host" if memory is STATE else "device"}
    assert "pinned_host" in kinds_of(state.opt_state)
    assert kinds_of({k: v for k, v in state.params.items() if k != "layers"}) == {"device"}
    assert jax.tree.map(lambda x: x.sharding.memory_kind, state) == program.memory_kinds

    batch = tiny.make_batch(7)
    ours = program.eval_step(state.params, program.put_batch(batch))
    theirs = plain.eval_step(expected.params, plain.put_batch(batch))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    assert kinds_of(jax.tree.leaves(program.model(state.params).layers)) == {"device"}


def together(training, schedule, groups):
    """The update of each layer depends on the norm of all."""
    return optax.chain(optax.clip_by_global_norm(0.1), optimizers.adamw(training, schedule, groups))


def kept_together(training, schedule, groups):
    """One number per layer, but kept in one array for all of a parameter's."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), params), lambda g, s, p=None: (g, s)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"factory": together}, ConfigError, "depends on other layers; use an optimizer that treats each layer alone"),
        ({"factory": kept_together}, ConfigError, "which has no piece for each layer"),
        ({"dbc_dac": True}, ConfigError, "vgpu.offload=none"),
        ({"remat": "none"}, ModelError, "remat_policy=none would keep the weights of all"),
        ({"remat": "weights"}, ModelError, "remat_policy=weights would keep"),
    ],
)
def test_what_cannot_be_streamed_is_refused(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        train(STATE, **arguments)
    assert "\n" not in str(caught.value)


def test_programs_that_cannot_be_streamed_are_refused():
    with pytest.raises(ConfigError, match=r"fp16 may have to take an update back"):
        tiny.make_program(memory=STATE, dtype=jnp.float16, model=MODEL)
    with pytest.raises(ConfigError, match=r"pipeline_parallel: stages keep their layers on the device"):
        tiny.make_program(
            tiny.with_training(gradient_accumulation_steps=2), memory=STATE, model=MODEL, devices=2,
            distributed=DistributedConfig(strategy="hybrid", pipeline_parallel=2),
        )  # fmt: skip
    program, params = tiny.make_program(memory=STATE, model=replace(MODEL, scan_layers=False))
    with pytest.raises(ModelError, match=r"scan_layers=false would take all of them at once"):
        tiny.run(program, params, 1)
