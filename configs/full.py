"""A 14 B model on sixty-four 80 GB GPUs: 4-way sharded data, 4-way tensor, 4-way pipeline parallel.

    python -m apt_jax.main --config=configs/full.py --workdir=runs/full --config.data.path='/data/*.parquet'

Give your own files with `data.path`, on storage every host sees. Parameters, gradients and
optimizer state are sharded over the data-parallel group as well (mesh axis `fsdp`), and each
layer's activations are recomputed in the backward pass.
"""

from apt_jax.core.config import default_config


def get_config():
    config = default_config()
    config.profile.name = "full"
    config.profile.description = "A 14 B model on sixty-four 80 GB GPUs."

    config.model.hidden_size = 4096
    config.model.num_layers = 48
    config.model.num_attention_heads = 64
    config.model.intermediate_size = 16_384
    config.model.max_position_embeddings = 8192
    config.model.vocab_size = 150_000
    config.model.remat_policy = "full"

    config.training.batch_size = 128
    config.training.gradient_accumulation_steps = 16
    config.training.max_steps = 1_000_000
    config.training.learning_rate = 1.5e-5
    config.training.warmup_steps = 5000
    config.training.adam_beta2 = 0.95
    config.training.gradient_clipping = 1.0
    config.training.mixed_precision = "bf16"
    config.training.eval_interval = 1000
    config.training.distributed.strategy = "hybrid"
    config.training.distributed.world_size = 64
    config.training.distributed.data_parallel = 1
    config.training.distributed.fsdp_parallel = 4
    config.training.distributed.tensor_parallel = 4
    config.training.distributed.pipeline_parallel = 4

    config.data.tokenizer = "bpe"
    config.data.tokenizer_vocab_size = 150_000
    config.data.workers = 16
    config.data.prefetch = 4

    config.monitoring.metrics_interval = 5
    config.checkpoints.save_interval = 100
    config.checkpoints.keep_last_n = 20
    return config
