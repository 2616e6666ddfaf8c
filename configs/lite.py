"""A 0.15 B model on one 8 GB GPU.

    python -m apt_jax.main --config=configs/lite.py --workdir=runs/lite --config.data.path=my.jsonl

Give your own files with `data.path` (text, jsonl, parquet, ArrayRecord; a file, folder or glob); a
byte-level BPE of up to 50,000 tokens is trained on them first. bf16 on GPUs that have it; on older
ones add `--config.training.mixed_precision=fp16`.
"""

from apt_jax.core.config import default_config


def get_config():
    config = default_config()
    config.profile.name = "lite"
    config.profile.description = "A 0.15 B model on one 8 GB GPU."

    config.model.hidden_size = 768
    config.model.num_layers = 12
    config.model.num_attention_heads = 12
    config.model.intermediate_size = 3072
    config.model.max_position_embeddings = 512
    config.model.vocab_size = 50_000
    config.model.remat_policy = "full"

    config.training.batch_size = 16
    config.training.gradient_accumulation_steps = 2
    config.training.max_steps = 10_000
    config.training.learning_rate = 5e-5
    config.training.warmup_steps = 500
    config.training.eval_interval = 500
    config.training.distributed.world_size = 1

    config.data.tokenizer = "bpe"
    config.data.tokenizer_vocab_size = 50_000

    config.monitoring.metrics_interval = 100
    config.checkpoints.save_interval = 1000
    config.checkpoints.keep_last_n = 3
    return config
