"""A base of a few kilobytes, for tests and benchmarks that need a full run in a second."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ("the", "a", "film", "play", "song", "was", "is", "very", "rather", "good", "bad", "fine", "dull", "long")


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with 330 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["Question: Text: Label: Answer: yes no", " ".join(WORDS), " A B C D\nA. x"] * 5, trainer
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def save_tiny_base(directory: Path, seed: int = 0, num_layers: int = 3, max_length: int = 256) -> Path:
    """Save a random Llama and its tokenizer as transformers does; returns the directory."""
    tokenizer = tiny_tokenizer()
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
