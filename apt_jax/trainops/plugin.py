"""What this package registers; names only, so that listing them imports no jax."""

from __future__ import annotations

from apt_jax import hookimpl

_SOURCES = "apt_jax.trainops.data.sources"


@hookimpl
def apt_datasets() -> dict[str, str]:
    return {
        "array_record": f"{_SOURCES}.array_record:array_record_source",
        "hlbd": "apt_jax.trainops.data.hlbd.source:hlbd_source",
        "jsonl": f"{_SOURCES}.jsonl:jsonl_source",
        "parquet": f"{_SOURCES}.parquet:parquet_source",
        "text": f"{_SOURCES}.text:text_source",
    }


@hookimpl
def apt_trackers() -> dict[str, str]:
    return {
        "jsonl": "apt_jax.trainops.monitoring.jsonl:JsonlTracker",
        "tensorboard": "apt_jax.trainops.monitoring.tensorboard:TensorBoardTracker",
    }
