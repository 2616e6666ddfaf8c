"""Byte-level BPE: subwords learned from a corpus, lossless on any text."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, pre_tokenizers, trainers

from apt_jax.model.tokenization.engine import (
    BOS,
    EOS,
    PAD,
    SEP,
    TrainedTokenizer,
    add_templates,
    room_for_pieces,
    special_config,
)


class BpeTokenizer(TrainedTokenizer):
    """The GPT-2 scheme (Radford et al. 2019): BPE over bytes, words split by the GPT-2 pattern.

    Ids: pad 0, bos 1, eos 2, sep 3, the 256 bytes, then merges in the order learned.
    """

    kind = "bpe"

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> BpeTokenizer:
        """Learns at most `vocab_size` entries. ConfigError: smaller than the 260 fixed ones."""
        specials = [PAD, BOS, EOS, SEP]
        room_for_pieces(vocab_size, len(specials) + 256)
        pipeline = Pipeline(models.BPE())
        pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        pipeline.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        pipeline.train_from_iterator(documents, trainer=trainer)
        add_templates(pipeline)
        return cls(pipeline, special_config(cls.kind, with_unk=False))
