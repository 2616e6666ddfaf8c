"""A 2.4 B model on sixteen 80 GB GPUs: 4-way data, 2-way tensor, 2-way pipeline parallel.

    python -m apt_jax.main --config=configs/pro.py --workdir=runs/pro --config.data.path='/data/*.parquet'

Give your own files with `data.path`, on storage every host sees. The device count must be 16 as
the layout says; `training.distributed` holds the sizes.
"""

from apt_jax.core.config import default_config


def get_config():
    config = default_config()
    config.profile.name = "pro"
    config.profile.description = "A 2.4 B model on sixteen 80 GB GPUs."

    config.model.hidden_size = 2048
    config.model.num_layers = 32
    config.model.num_attention_heads = 32
    config.model.intermediate_size = 8192
    config.model.max_position_embeddings = 4096
    config.model.vocab_size = 100_000
    config.model.remat_policy = "attention"

    config.training.batch_size = 64
    config.training.gradient_accumulation_steps = 8
    config.training.max_steps = 500_000
    config.training.learning_rate = 2e-5
    config.training.warmup_steps = 2000
    config.training.adam_beta2 = 0.95
    config.training.mixed_precision = "bf16"
    config.training.eval_interval = 1000
    config.training.distributed.strategy = "hybrid"
    config.training.distributed.world_size = 16
    config.training.distributed.data_parallel = 4
    config.training.distributed.fsdp_parallel = 1
    config.training.distributed.tensor_parallel = 2
    config.training.distributed.pipeline_parallel = 2

    config.data.tokenizer = "bpe"
    config.data.tokenizer_vocab_size = 100_000
    config.data.workers = 8

    config.monitoring.metrics_interval = 10
    config.checkpoints.save_interval = 250
    config.checkpoints.keep_last_n = 10
    return config
