"""Text files: each file is one document."""

from __future__ import annotations

from collections.abc import Sequence

from apt_jax.core.config.schema import DataConfig
from apt_jax.trainops.data.api import Document, RecordError, Text
from apt_jax.trainops.data.files import digest, expand, fingerprint, label, unreadable


class TextSource:
    """One document per file; line ends are kept as they are, a byte-order mark is not."""

    def __init__(self, files: Sequence[str]):
        self._files = tuple(files)
        self.name = label(files)
        self.fingerprint = fingerprint(["text", *(digest(file) for file in files)])

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Document:
        """Raises RecordError if the file is not UTF-8 text."""
        file = self._files[i]
        try:
            with open(file, "rb") as stream:
                data = stream.read()
        except OSError as error:
            raise unreadable(file, error) from error
        if (zero := data.find(0)) >= 0:
            raise RecordError(file, f"is not a text file (zero byte at offset {zero})")
        try:
            return Text(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise RecordError(
                file,
                f"is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}; to convert "
                "Chinese text: iconv -f GB18030 -t UTF-8)",
            ) from error

    def where(self, i: int) -> str:
        """The file of document i."""
        return self._files[i]


def text_source(paths: tuple[str, ...], config: DataConfig) -> TextSource:
    """Opens text files, folders of them, or globs."""
    return TextSource(expand(paths, "text"))
