"""An architecture, a loss term and an observer, in one module.

    --config.model.architecture=example_gated
    --config.extensions="{'example': {'confidence_penalty': 0.05}}"
"""

import json

from apt_jax import hookimpl

apt_jax_api = "1"
_losses: list[float] = []


@hookimpl
def apt_architectures():
    return {"example_gated": "apt_jax_example:build"}  # a text: listing plugins then needs no jax


def build(config, vocab_size, rngs, *, kernels=None, dtype="float32"):
    """The plain decoder, its last hidden state scaled by a learned gate; the identity until trained."""
    import jax.numpy as jnp
    from flax import nnx

    from apt_jax.model.architectures import Decoder
    from apt_jax.model.architectures.block import Traits

    class Gated(Decoder):
        def hidden(self, tokens_BT, **kwargs):
            found = super().hidden(tokens_BT, **kwargs)
            return found.replace(x_BTD=found.x_BTD * (1 + self.gate[...]).astype(found.x_BTD.dtype))

    model = Gated(config, vocab_size, rngs, traits=Traits(), kernels=kernels, dtype=dtype)
    model.gate = nnx.Param(jnp.zeros(config.hidden_size), logical_axes=("embed",))
    return model


@hookimpl
def apt_loss_terms(config):
    beta = config.extensions.get("example", {}).get("confidence_penalty", 0.0)

    def confidence_penalty(model, hidden, batch, controls):
        """Minus β times the entropy of the prediction (Pereyra et al., arXiv:1701.06548)."""
        import jax

        logp_BTV = jax.nn.log_softmax(model.unembed(hidden.x_BTD))
        return beta * ((jax.numpy.exp(logp_BTV) * logp_BTV).sum(-1) * batch["loss_mask"]).sum()

    return {"confidence_penalty": confidence_penalty} if beta else None


@hookimpl
def apt_step_end(run, step, metrics):
    _losses[step - run.start_step - 1 :] = [metrics["loss"]]


@hookimpl
def apt_train_end(run):
    if run.workdir and _losses:
        (run.workdir / "example.json").write_text(json.dumps({"steps": len(_losses), "lowest": min(_losses)}))
