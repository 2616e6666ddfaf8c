"""Answers of a model to questions, by greedy generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from apt_jax.model.generation import GenerationConfig, Generator, generate_text

if TYPE_CHECKING:
    from apt_jax.trainops.checkpoints import LoadedModel


def greedy_answers(
    loaded: LoadedModel, batch_size: int = 64, max_new_tokens: int = 64
) -> Callable[[list[str]], list[str]]:
    """A function that answers prompts, framed as the prompt-completion pairs of training are.

    Each token is the most likely one given the question and the answer so far; an answer ends at the
    end token or after `max_new_tokens`. Questions of like length go together, so that one or two
    shapes are compiled whatever the number of questions.
    """
    generator = Generator(loaded.model)
    config = GenerationConfig(max_new_tokens=max_new_tokens, temperature=0.0)

    def answer(prompts: list[str]) -> list[str]:
        by_length = sorted(range(len(prompts)), key=lambda i: len(loaded.tokenizer.encode_prompt(prompts[i])))
        answers = [""] * len(prompts)
        for start in range(0, len(by_length), batch_size):
            chosen = by_length[start : start + batch_size]
            # A short last batch is filled up with its last question: another size would compile anew.
            batch = [prompts[i] for i in chosen + chosen[-1:] * (batch_size - len(chosen))]
            texts = generate_text(generator, loaded.tokenizer, batch, config, as_question=True)
            for i, text in zip(chosen, texts, strict=False):
                answers[i] = text
        return answers

    return answer
