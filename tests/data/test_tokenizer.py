"""Row text is plain text: no added token is matched in it, and other tokens stay the same."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lorchestra.data.tokenizer import TextTokenizer, plain_ids
from lorchestra.errors import ConfigError, DataError

CORPUS = ["the film was good, the play was bad <b>bold</b> [x] s>|im_end start< user\nText: Label: yes no ABC abc"] * 4
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[SEP]", "<unk>"]
OTHERS = [
    AddedToken("<ENT>", normalized=True, special=False),
    AddedToken("<b>", normalized=False, special=False),
    AddedToken("[MASK]", lstrip=True, normalized=False, special=True),
    AddedToken("<R>", rstrip=True, normalized=False, special=True),
    AddedToken("<lone>", single_word=True, normalized=False, special=True),
    AddedToken("  ", normalized=False, special=False),
    AddedToken("covid19", normalized=False, special=False),
]
KINDS = ("byte-level", "ignoring merges", "llama", "unigram", "wordpiece", "wordlevel")


def _bpe(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # the names of special tokens are words of the corpus, so that merges make them up, too
    corpus = [*CORPUS, *(" ".join(SPECIAL) for _ in range(9))]
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _llama() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    byte = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *byte], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    record = json.loads(tokenizer.to_str())
    record["added_tokens"] = [token for token in record["added_tokens"] if token["content"] not in byte]
    tokenizer = Tokenizer.from_str(json.dumps(record))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _unigram() -> Tokenizer:
    pieces = sorted({*"".join(CORPUS), *"".join(SPECIAL), "\u2581", "the", "film", "\u2581the"})
    vocab = [(name, 0.0) for name in SPECIAL] + [(piece, -5.0 + 0.5 * len(piece)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=SPECIAL.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _words(model: Any, trainer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def build(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, with special tokens and others added to it."""
    made = {
        "byte-level": _bpe,
        "ignoring merges": lambda: _bpe(ignore_merges=True),
        "llama": _llama,
        "unigram": _unigram,
        "wordpiece": lambda: _words(
            models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False),
        ),
        "wordlevel": lambda: _words(
            models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
        ),
    }[kind]()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    made.add_tokens(OTHERS)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def control(tokenizer: Any) -> dict[int, str]:
    """Tokens that rows may not have: all added tokens except white space and plain words."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {index: token.content for index, token in added.items() if token.content not in ("  ", "covid19")}


FRAME = ("<s><|im_start|>user\nText: ", "\nLabel:<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")

texts = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, *(token.content for token in OTHERS), "<ent>", "<|im_end", "|>", "<", ">", "[sep]"]),
        st.text(st.sampled_from("the film <>|[]/s\n.A é\u2003"), max_size=8),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=texts, choice=texts, chat=st.booleans())
def test_no_text_has_a_control_token(kind: str, data: str, choice: str, chat: bool) -> None:
    tokenizer = build(kind)
    before, between, end = FRAME if chat else ("Text: ", "\nLabel: ", "\n")
    (ids,), _ = TextTokenizer(tokenizer).ids([(before, data, between, choice, end)], ["rows:1"])
    names = control(tokenizer)
    unknown = tokenizer.unk_token_id
    seen = [names[index] for index in ids if index in names and index != unknown]
    assert seen == (["<s>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"] if chat else [])
    # plain words and white space that were added, and tokens of no meaning, are cut as the tokenizer cuts them
    whole = plain_ids(tokenizer, [before + data + between + choice + end])[0]
    if [index for index in whole if index in names and index != unknown] == [
        index for index in ids if index in names and index != unknown
    ] and "<unk>" not in data + choice:
        assert ids == whole


@pytest.mark.parametrize("kind", ["byte-level", "ignoring merges", "llama"])
@settings(max_examples=60, deadline=None)
@given(data=texts)
def test_the_text_can_be_read_back(kind: str, data: str) -> None:
    tokenizer = build(kind)
    (ids,), _ = TextTokenizer(tokenizer).ids([("Text:", data, "")], ["rows:1"])
    decoded = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    if kind == "llama":  # puts a space before what follows an added token, white space too
        decoded, data = decoded.replace(" ", ""), data.replace(" ", "")
    assert decoded == "Text:" + data


@pytest.mark.parametrize("kind", KINDS)
def test_each_added_token_alone(kind: str) -> None:
    tokenizer = build(kind)
    tokens = TextTokenizer(tokenizer)
    for index, name in control(tokenizer).items():
        (ids,), met = tokens.ids([("Text: ", f"see {name} there", " Label:")], ["rows:7"])
        if index != tokenizer.unk_token_id:
            assert index in plain_ids(tokenizer, [f"Text: see {name} there"])[0]  # the tokenizer alone obeys
            assert index not in ids
        assert met == {name: "rows:7"}
    kept = TextTokenizer(tokenizer, ["<ENT>"])
    (ids,), met = kept.ids([("Text: ", "see <ENT> and </s> there", "")], ["rows:7"])
    assert tokenizer.convert_tokens_to_ids("<ENT>") in ids
    assert tokenizer.eos_token_id not in ids
    assert met == {"</s>": "rows:7"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_tokenizes_other_text_as_the_tokenizer_does(kind: str) -> None:
    """Such text does not need the twin; tokenized with it, only the names change."""
    tokenizer = build(kind)
    tokens = TextTokenizer(tokenizer)
    for data in ("the film\nwas  good", " é covid19 ", "", "\u2003", "a < s > b", "im_end s>"):
        for text in ((FRAME[0], data, FRAME[1], data, FRAME[2]), ("Text: ", data, "\nLabel:", " yes", "\n")):
            (ids,) = tokens._literal([text], ["rows:1"])
            assert ids == plain_ids(tokenizer, ["".join(text)])[0]


def test_a_name_across_template_and_data_is_plain_text() -> None:
    tokenizer = build("byte-level")
    ids, _ = TextTokenizer(tokenizer).ids([("Q: <|im_", "end", "|>"), ("Q: ", "</", "", "s>", "")], ["a", "b"])
    assert all(control(tokenizer).keys().isdisjoint(row) for row in ids)


def test_private_characters_in_the_data_are_only_text() -> None:
    tokenizer = build("byte-level")
    tokens = TextTokenizer(tokenizer)
    for character in ("\U000f0000", "\U000f0002"):
        (ids,), _ = tokens.ids([(FRAME[0], f"{character}<|im_end|>", FRAME[1])], ["rows:1"])
        assert [control(tokenizer).get(i) for i in ids].count("<|im_end|>") == 1
        assert character in tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    with pytest.raises(DataError, match="rows:1: has control tokens and private-use characters"):
        tokens.ids([("", "\U000f0000\U00100000</s>", "")], ["rows:1"])


def test_tokens_to_keep_must_be_added_and_not_special() -> None:
    tokenizer = build("byte-level")
    with pytest.raises(ConfigError, match=r"data\.keep_tokens: '<ENTITY>' is not an added token.*did you mean '<ENT>'"):
        TextTokenizer(tokenizer, ["<ENTITY>"])
    with pytest.raises(ConfigError, match=r"data\.keep_tokens: '</s>' is a special token"):
        TextTokenizer(tokenizer, ["</s>"])
    every = TextTokenizer(tokenizer, None)  # as runs of format 1 have it
    (ids,), _ = every.ids([("", "<ENT><b></s>", "")], ["rows:1"])
    assert {control(tokenizer).get(index) for index in ids} - {None} == {"<ENT>", "<b>"}


@pytest.mark.base
def test_the_embedded_base_reads_all_its_names_as_text() -> None:
    from lorchestra.config.adapt import BaseConfig
    from lorchestra.models.loading import load_tokenizer

    tokenizer = load_tokenizer(BaseConfig())
    tokens = TextTokenizer(tokenizer)
    names = {index: token.content for index, token in tokenizer.backend_tokenizer.get_added_tokens_decoder().items()}
    for index, name in names.items():
        for text in ((FRAME[0][3:], f"a {name}\n{name}", FRAME[1]), ("Text: ", name, " Label:")):
            (ids,), _ = tokens.ids([text], ["rows:1"])
            assert ids.count(index) == "".join(text[::2]).count(name)
            assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == "".join(text)
    plain = [("Text: ", json.dumps({"a": [1, "é"]}) + "\n  x", "\nLabel:"), (FRAME[0][3:], "good film", FRAME[1])]
    assert tokens._literal(plain, ["a", "b"]) == plain_ids(tokenizer, ["".join(text) for text in plain])
