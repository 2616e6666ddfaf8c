"""TensorBoard's event file, written directly: a few protobuf fields and a checksum.

The format has not changed in years, and writing it takes a page; the usual writers bring a thread,
a queue and more packages. Fields: tensorflow/core/util/event.proto and framework/{summary,tensor}.proto;
framing: tensorflow/core/lib/io/record_writer.h. A test reads the files with an independent library.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types
_DT_STRING = 7
_SESSION_START = 1
_CLASS_TENSOR = 2


class EventFile:
    """Appends events to a new file in `folder`; each call is one record, handed to the system at once."""

    def __init__(self, folder: Path, purge_step: int | None = None):
        """Args:
        folder: created when missing. TensorBoard reads all files of a folder in name order.
        purge_step: makes the reader forget what earlier files say of this step and later ones.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns():019d}.apt_jax"
        self._file = self.path.open("xb", buffering=0)
        self._write(None, _field(3, b"brain.Event:2"))
        if purge_step is not None:
            self._write(purge_step, _field(7, _field(1, _SESSION_START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records all values of a step, as float32, in one event."""
        summary = b"".join(_field(1, _field(1, tag) + _field(2, float(v))) for tag, v in values.items())
        self._write(step, _field(5, summary))

    def text(self, step: int, tag: str, text: str) -> None:
        """Records a text, which TensorBoard renders as Markdown."""
        metadata = _field(1, _field(1, "text")) + _field(4, _CLASS_TENSOR)
        shape = _field(2, _field(1, 1))  # one dimension of size 1
        tensor = _field(1, _DT_STRING) + _field(2, shape) + _field(8, text)
        self._write(step, _field(5, _field(1, _field(1, tag) + _field(9, metadata) + _field(8, tensor))))

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int | None, payload: bytes) -> None:
        wall_time = bytes([1 << 3 | _FIXED64]) + struct.pack("<d", time.time())
        event = wall_time + (_field(2, step) if step is not None else b"") + payload
        self._file.write(_record(event))


def _record(data: bytes) -> bytes:
    """u64 length, its masked CRC, data, its masked CRC; little-endian."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data))


def _field(number: int, value: int | float | bytes | str) -> bytes:
    """One protobuf field with a number up to 15; a float is written in single precision."""
    if isinstance(value, float):
        return bytes([number << 3 | _FIXED32]) + _float32(value)
    if isinstance(value, int):
        return bytes([number << 3 | _VARINT]) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | _BYTES]) + _varint(len(data)) + data


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:  # too large for single precision: shown as infinite
        return struct.pack("<f", math.copysign(math.inf, value))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _crc_table() -> Iterable[int]:
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli, reflected
        yield crc


_TABLE = tuple(_crc_table())


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset as the record format asks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
