"""Token ids of strings that are part template and part data, with the data as plain text.

A tokenizer matches its added tokens (`<|im_end|>`, `<s>`, `[SEP]`) in every string, so a row that contains the name of
one could end the user's turn, or start another. If a string has more of them than its template, it is tokenized with a
twin of the tokenizer, in which the added tokens are renamed to single private-use characters. These replace the names
in the template; the names in the data are then ordinary letters. All other tokens stay the same, including merges
across the boundary of template and data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from lorchestra.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# starts of the private-use planes: data with characters of one plane uses the other
_PLANES = (0xF0000, 0x100000)
_METASPACE = "\u2581"
_BYTE = re.compile("<0x[0-9A-F]{2}>")

_Text = tuple[str, ...]


class TextTokenizer:
    """A base's tokenizer for strings of alternating template and row parts (see `prompts.Text`).

    Args:
        tokenizer: transformers' tokenizer with a fast backend; without one, its tokens are used unchanged.
        keep: added tokens, not special ones, that stay tokens in rows; None for all that are not special.
        num_embeddings: number of tokens that the model has embeddings for.

    Raises:
        ConfigError: `keep` has a name that is not an added token, or that is a special one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, keep: Iterable[str] | None = (), num_embeddings: int | None = None
    ) -> None:
        self.tokenizer, self.num_embeddings = tokenizer, num_embeddings
        backend = getattr(tokenizer, "backend_tokenizer", None)
        added = {} if backend is None else backend.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        names = {token.content: index for index, token in added.items()}
        if keep is None:
            keep = names.keys() - special
        for name in keep:
            if name not in names:
                message = f"data.keep_tokens: {name!r} is not an added token of the base's tokenizer"
                raise ConfigError(f"{message}; {did_you_mean(name, sorted(names))}")
            if name in special:
                raise ConfigError(f"data.keep_tokens: {name!r} is a special token, which rows may not have; remove it")
        self.special = frozenset(special)
        split = getattr(tokenizer, "split_special_tokens", False)
        self._ids = {
            name: index
            for name, index in names.items()
            if name not in keep and not _is_harmless(name, name in special) and not (split and name in special)
        }
        unknown = getattr(tokenizer, "unk_token", None)
        # unknown words have this token too: it only counts if its name is in the text
        self._unknown = unknown if unknown in self._ids else None
        self._control = frozenset(index for name, index in self._ids.items() if name != self._unknown)
        self._in_template: dict[str, list[int]] = {}
        self._twins: dict[int, Tokenizer] = {}
        self.questions: dict[object, object] = {}
        """Encoded typed questions, by what they depend on (see `data.typed`)."""

    def ids(self, texts: Sequence[_Text], wheres: Sequence[str]) -> tuple[list[list[int]], dict[str, str]]:
        """Token ids of each text, without special tokens before or after it.

        `wheres` are the locations of the texts. Also returns the names of tokens that were read as plain text, each
        with its first location.

        Raises:
            DataError: a text has control tokens that cannot be read as plain text.
        """
        ids = plain_ids(self.tokenizer, ["".join(text) for text in texts])
        literal_names: dict[str, str] = {}
        if not self._ids:
            return ids, literal_names
        affected = [index for index, text in enumerate(texts) if self._has_tokens_in_data(text, ids[index])]
        for index in affected:
            for name in self._pattern.findall("\0".join(texts[index][1::2])):
                literal_names.setdefault(name, wheres[index])
        if affected:
            literal = self._literal([texts[index] for index in affected], [wheres[index] for index in affected])
            for index, literal_ids in zip(affected, literal, strict=True):
                ids[index] = literal_ids
        return ids, literal_names

    def ends(self, texts: Sequence[str], wheres: Sequence[str]) -> list[list[int]]:
        """The end of each token in characters, for texts that are data, with control tokens read as plain text.

        Raises:
            DataError: a text has control tokens that cannot be read as plain text.
        """
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        out = [[end for _, end in spans] for spans in encoded["offset_mapping"]]
        data = [("", text, "") for text in texts]
        affected = [
            index
            for index, text in enumerate(data)
            if self._ids and self._has_tokens_in_data(text, encoded["input_ids"][index])
        ]
        if affected:
            twin, _ = self._twin_for([data[index] for index in affected], wheres[affected[0]])
            literal = twin.encode_batch([texts[index] for index in affected], add_special_tokens=False)
            for index, encoding in zip(affected, literal, strict=True):
                out[index] = [end for _, end in encoding.offsets]
        return out

    def _has_tokens_in_data(self, text: _Text, ids: list[int]) -> bool:
        """Whether the ids have other control tokens than the template's."""
        expected = [index for part in text[::2] for index in self._template_tokens(part)]
        if self._unknown is not None and any(self._unknown in part for part in text[1::2]):
            return True
        if not expected:
            return not self._control.isdisjoint(ids)
        return [index for index in ids if index in self._control] != expected

    def _template_tokens(self, part: str) -> list[int]:
        """The control tokens in a part of the template."""
        tokens = self._in_template.get(part)
        if tokens is None:
            tokens = [self._ids[name] for name in self._pattern.findall(part) if name != self._unknown]
            self._in_template[part] = tokens
        return tokens

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # longest match first, as in tokenizers
        return re.compile("|".join(re.escape(name) for name in sorted(self._ids, key=len, reverse=True)))

    def _literal(self, texts: Sequence[_Text], wheres: Sequence[str]) -> list[list[int]]:
        """Token ids with the data as plain text."""
        twin, names = self._twin_for(texts, wheres[0])
        strings = [
            "".join(
                part if index % 2 else self._pattern.sub(lambda match: names[match[0]], part)
                for index, part in enumerate(text)
            )
            for text in texts
        ]
        out = [encoding.ids for encoding in twin.encode_batch(strings, add_special_tokens=False)]
        for text, where, ids in zip(texts, wheres, out, strict=True):
            expected = [index for part in text[::2] for index in self._template_tokens(part)]
            if [index for index in ids if index in self._control] != expected:
                message = f"{where}: has names of the base's control tokens, which its tokenizer cannot read as text"
                raise DataError(f"{message}; remove them")
        return out

    def _twin_for(self, texts: Sequence[_Text], where: str) -> tuple[Tokenizer, dict[str, str]]:
        """A twin whose token names do not occur in the texts, and these names."""
        used = {ord(character) for text in texts for part in text for character in part if ord(character) >= _PLANES[0]}
        free = [start for start in _PLANES if used.isdisjoint(range(start, start + len(self._ids)))]
        if not free:
            raise DataError(f"{where}: has control tokens and private-use characters; remove one of the two")
        names = _stand_ins(self._ids, free[0])
        if free[0] not in self._twins:
            self._twins[free[0]] = _twin(self.tokenizer.backend_tokenizer, self._ids, names)
        return self._twins[free[0]], names


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text without special tokens, padding and truncation."""
    return tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def front_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer adds before a text (BOS), without those after it (EOS)."""
    probe = "a"
    plain = plain_ids(tokenizer, [probe])[0]
    ids = list(tokenizer(probe, padding=False, truncation=False)["input_ids"])
    for start in range(len(ids) - len(plain) + 1):
        if plain and ids[start : start + len(plain)] == plain:
            return tuple(ids[:start])
    message = "the base's tokenizer changes a text's tokens when it adds special ones, which is not supported"
    raise ConfigError(f"{message}; use another base")


def _is_harmless(name: str, special: bool) -> bool:
    """Whether an added token controls nothing: white space, an ordinary word, or the token of a byte."""
    bare = name.replace(_METASPACE, " ")
    word = not special and all(letter.isalnum() or letter.isspace() for letter in bare)
    return word or bare.isspace() or _BYTE.fullmatch(name) is not None


def _stand_ins(ids: dict[str, int], start: int) -> dict[str, str]:
    return {name: chr(start + index) for index, name in enumerate(ids)}


def _twin(backend: Tokenizer, ids: dict[str, int], names: dict[str, str]) -> Tokenizer:
    """The tokenizer with these tokens renamed, under the same ids."""
    record = json.loads(backend.to_str())
    # not used here, and they refer to tokens by their names
    record["truncation"] = record["padding"] = record["post_processor"] = None
    for token in record["added_tokens"]:
        if token["content"] in names:
            token["content"] = names[token["content"]]
            # some normalizers remove private-use characters
            token["normalized"] = token["normalized"] and _survives(backend, token["content"])
    model = record["model"]
    # also in the vocabulary, where models that look up whole words or pieces would find the names
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), *score] for piece, *score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _involves(merge, names)]
    hint = "remove such text from the rows, or use another base"
    try:
        twin = Tokenizer.from_str(json.dumps(record))
    except Exception as error:  # tokenizers raises plain exceptions
        raise ConfigError(f"the base's tokenizer cannot read its token names as text ({error}); {hint}") from error
    for name, index in ids.items():
        if twin.token_to_id(names[name]) != index:
            raise ConfigError(f"the base's tokenizer cannot distinguish its token {name!r} from such text; {hint}")
    return twin


def _survives(backend: Tokenizer, character: str) -> bool:
    return backend.normalizer is None or character in backend.normalizer.normalize_str(character)


def _involves(merge: str | list[str], names: dict[str, str]) -> bool:
    """Whether a merge results in one of these tokens, or starts from one."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
