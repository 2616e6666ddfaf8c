"""A 0.5 B model on four 24 GB GPUs.

    python -m apt_jax.main --config=configs/standard.py --workdir=runs/standard --config.data.path=my.jsonl

Give your own files with `data.path`. The layout is chosen by model size (data parallel at this
one); with another number of devices add `--config.training.distributed.world_size=none`.
"""

from apt_jax.core.config import default_config


def get_config():
    config = default_config()
    config.profile.name = "standard"
    config.profile.description = "A 0.5 B model on four 24 GB GPUs."

    config.model.hidden_size = 1024
    config.model.num_layers = 24
    config.model.num_attention_heads = 16
    config.model.intermediate_size = 4096
    config.model.max_position_embeddings = 2048
    config.model.vocab_size = 50_000
    config.model.remat_policy = "full"

    config.training.batch_size = 32
    config.training.gradient_accumulation_steps = 4
    config.training.max_steps = 100_000
    config.training.learning_rate = 3e-5
    config.training.warmup_steps = 1000
    config.training.mixed_precision = "bf16"
    config.training.eval_interval = 1000
    config.training.distributed.world_size = 4

    config.data.tokenizer = "bpe"
    config.data.tokenizer_vocab_size = 50_000

    config.monitoring.metrics_interval = 50
    config.checkpoints.save_interval = 500
    config.checkpoints.keep_last_n = 5
    return config
