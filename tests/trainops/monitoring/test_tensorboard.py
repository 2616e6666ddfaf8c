"""TensorBoard files, read back with tensorboardX's generated protobuf classes and its own checksum."""

from __future__ import annotations

import math
import struct

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from apt_jax.trainops.monitoring.event_file import EventFile
from apt_jax.trainops.monitoring.tensorboard import TensorBoardTracker


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(path) -> list[Event]:
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        body, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4])[0] == masked(body)
        data = data[4:]
        events.append(Event.FromString(body))
    return events


def scalars(folder) -> dict[tuple[str, int], float]:
    """What TensorBoard would show: files in name order, a session start purges what follows its step."""
    shown: dict[tuple[str, int], float] = {}
    for path in sorted(folder.iterdir()):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START:
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    shown[value.tag, event.step] = value.simple_value
    return shown


def test_scalars_are_read_back_with_their_step_and_time(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.start({"training": {"batch_size": 4}})
    tracker.log(7, {"loss": 2.5, "eval_loss": 3.25, "moe/load": 0.5})
    tracker.log(300_000_000_000, {"loss": -1.5})
    tracker.close()
    assert scalars(tmp_path / "tensorboard") == {
        ("train/loss", 7): 2.5,
        ("eval/loss", 7): 3.25,
        ("moe/load", 7): 0.5,
        ("train/loss", 300_000_000_000): -1.5,
    }
    (path,) = (tmp_path / "tensorboard").iterdir()
    first = read_events(path)[0]
    assert first.file_version == "brain.Event:2"
    assert first.wall_time == pytest.approx(path.stat().st_mtime, abs=60)


def test_resume_replaces_what_came_after_the_checkpoint(tmp_path):
    for resume_at, steps, value in ((0, range(1, 5), 1.0), (2, range(3, 6), 2.0)):
        tracker = TensorBoardTracker(tmp_path)
        tracker.start({}, resume_at)
        for step in steps:
            tracker.log(step, {"loss": value})
        tracker.close()
    shown = scalars(tmp_path / "tensorboard")
    assert [shown["train/loss", s] for s in range(1, 6)] == [1.0, 1.0, 2.0, 2.0, 2.0]


def test_text_and_config_carry_the_text_plugin(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    tracker.start({"model": {"hidden_size": 8}})
    tracker.text(5, "samples/after", "你好 " * 100)
    (path,) = (tmp_path / "tensorboard").iterdir()
    config, sample = (event.summary.value[0] for event in read_events(path)[1:])
    assert config.tag == "config" and '"hidden_size": 8' in config.tensor.string_val[0].decode()
    assert sample.tag == "samples/after" and sample.tensor.string_val[0].decode() == "你好 " * 100
    assert sample.metadata.plugin_data.plugin_name == "text"
    assert sample.tensor.dtype == 7 and sample.tensor.tensor_shape.dim[0].size == 1


def test_values_beyond_single_precision_do_not_break_the_file(tmp_path):
    file = EventFile(tmp_path)
    file.scalars(1, {"nan": math.nan, "inf": math.inf, "huge": -1e300, "tiny": 1e-300})
    file.close()
    values = {v.tag: v.simple_value for v in read_events(file.path)[1].summary.value}
    assert math.isnan(values["nan"]) and values["inf"] == math.inf
    assert values["huge"] == -math.inf and values["tiny"] == 0.0


def test_nothing_is_written_before_start_and_logging_then_says_so(tmp_path):
    tracker = TensorBoardTracker(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="start"):
        tracker.log(1, {"loss": 1.0})
