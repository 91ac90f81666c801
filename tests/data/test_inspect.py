"""`lorchestra tasks --show` shows a row as the model sees it."""

from __future__ import annotations

from lorchestra.data.encode import encode, inspect_row
from lorchestra.data.prompts import PromptTemplate
from lorchestra.types import Example

SKY = Example("1", "What is the color of the sky?", ("red", "blue", "green"), 1, "t.jsonl:1")


def test_positions_and_tokens_are_those_of_the_whole_strings(bos_tokenizer):
    for scoring in ("letter", "text"):
        row = inspect_row(SKY, PromptTemplate(), bos_tokenizer, scoring=scoring)
        encoded = encode([SKY], PromptTemplate(), bos_tokenizer, scoring=scoring).rows[0]
        for text, tokens, choice in zip(row.continuations, row.choices, encoded.choices, strict=True):
            whole = bos_tokenizer(row.prompt + text)["input_ids"]
            assert [token.position for token in tokens] == list(range(len(encoded.prefix), len(whole)))
            assert [token.id for token in tokens] == whole[len(encoded.prefix) :] == list(choice)
            assert "".join(token.text for token in tokens).endswith(text.strip())
        assert [token.id for token in row.before] == list(encoded.prefix[-4:])
        assert row.before[-1].position == len(encoded.prefix) - 1


def test_a_choice_that_merges_with_the_prompts_end_starts_before_it(merging_tokenizer):
    """The prompt ends in ":", but the scored token is ": A"."""
    row = inspect_row(SKY, PromptTemplate(), merging_tokenizer, scoring="letter")
    assert row.prompt.endswith("Answer:")
    assert [tokens[0].text for tokens in row.choices] == [": A", ": B", ": C"]
    assert row.before[-1].text == "r"
    whole = inspect_row(SKY, PromptTemplate(), merging_tokenizer, scoring="letter", num_before=1000)
    assert [token.position for token in whole.before] == list(range(row.before[-1].position + 1))
