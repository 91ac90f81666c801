"""Tiny tokenizers, trained in a fraction of a second, each with one trait that real ones have."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Question: What is the color of the sky?\nA. red\nB. blue\nC. green\nAnswer: B",
    "Question: Which animal says meow?\nA. the dog\nB. the cat\nC. the cow\nD. the fish\nAnswer: B",
    "Text: the film was good\nLabel: yes",
    "Text: the film was bad\nLabel: no",
    "Answer: A Answer: B Answer: C Answer: D Answer: E",
    " A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
] * 3

CHAT_TEMPLATE = (
    "<s>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _byte_level(processor: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if processor is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=processor, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def _spelling(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """One token per character of the corpus, none for other characters, and the given merges, also across words."""
    pieces = [*sorted(set("".join(CORPUS))), *(left + right for left, right in merges)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=merges)))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds nothing, as GPT-2's."""
    return _byte_level()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Puts <s> in front."""
    return _byte_level("<s> $A")


@pytest.fixture(scope="session")
def eos_tokenizer() -> PreTrainedTokenizerFast:
    """Puts <s> in front and </s> at the end, where a scored choice must not have it."""
    return _byte_level("<s> $A </s>")


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Has a chat template, which writes <s> itself; the tokenizer adds it too."""
    tokenizer = _byte_level("<s> $A")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Merges across words: the prompt's last ":" and a choice's " A" become one token."""
    return _spelling([(":", " "), *((": ", letter) for letter in "ABCDE")])


@pytest.fixture(scope="session")
def letter_blind_tokenizer() -> PreTrainedTokenizerFast:
    """A letter with its space is two tokens, of which all letters share the first."""
    return _spelling([])
