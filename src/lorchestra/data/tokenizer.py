"""Strings that are part template and part data, as token ids: what is data is plain text.

A tokenizer looks for its added tokens (`<|im_end|>`, `<s>`, `[SEP]`) in every string it is given, so a text that holds
one's name would end the user's turn, or begin another. Where a string has more of them than its template wrote, it goes
through a twin of the tokenizer: the same in all, but its added tokens have other names, single private characters,
which are put in where the template has theirs. The names in the data then are letters like any others, and all else is
cut as before, merges where template and data meet included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from lorchestra.errors import ConfigError, DataError, did_you_mean

# Where private characters begin, a plane each: data that holds some of one are left another.
_PLANES = (0xF0000, 0x100000)
_METASPACE = "\u2581"
_BYTE = re.compile("<0x[0-9A-F]{2}>")

_Text = tuple[str, ...]


class TextTokenizer:
    """A base's tokenizer, for strings of a template's and a row's parts in turns (see `prompts.Text`).

    Args:
        tokenizer: transformers' tokenizer with a fast backend; without one, its tokens are taken as they come.
        keep: added tokens that rows may hold, not special ones; None for all that are not special.
        num_embeddings: how many tokens the model knows.

    Raises:
        ConfigError: `keep` names what is no added token, or a special one.
    """

    def __init__(self, tokenizer: Any, keep: Iterable[str] | None = (), num_embeddings: int | None = None) -> None:
        self.tokenizer, self.num_embeddings = tokenizer, num_embeddings
        backend = getattr(tokenizer, "backend_tokenizer", None)
        added = {} if backend is None else backend.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        names = {token.content: index for index, token in added.items()}
        if keep is None:
            keep = names.keys() - special
        for name in keep:
            if name not in names:
                message = f"data.keep_tokens: {name!r} is no token that was added to the base's tokenizer"
                raise ConfigError(f"{message}; {did_you_mean(name, sorted(names))}")
            if name in special:
                raise ConfigError(f"data.keep_tokens: {name!r} is a special token, which no row may hold; leave it out")
        self.special = frozenset(special)
        split = getattr(tokenizer, "split_special_tokens", False)
        self._ids = {
            name: index
            for name, index in names.items()
            if name not in keep and not _is_harmless(name, name in special) and not (split and name in special)
        }
        unknown = getattr(tokenizer, "unk_token", None)
        # words that the tokenizer does not know have this one, too: it counts only where its name is written
        self._unknown = unknown if unknown in self._ids else None
        self._control = frozenset(index for name, index in self._ids.items() if name != self._unknown)
        self._in_template: dict[str, list[int]] = {}
        self._twins: dict[int, Tokenizer] = {}

    def ids(self, texts: Sequence[_Text], wheres: Sequence[str]) -> tuple[list[list[int]], dict[str, str]]:
        """Token ids of each text without special tokens in front or behind.

        `wheres` say where each text comes from. Also returns the names of tokens that were read as plain text, each
        with where it was first.

        Raises:
            DataError: a text holds control tokens that cannot be read as plain text.
        """
        found = plain_ids(self.tokenizer, ["".join(text) for text in texts])
        met: dict[str, str] = {}
        if not self._ids:
            return found, met
        obeyed = [index for index, text in enumerate(texts) if self._obeys(text, found[index])]
        for index in obeyed:
            names = self._pattern.findall("\0".join(texts[index][1::2]))
            for name in names:
                met.setdefault(name, wheres[index])
        if obeyed:
            literal = self._literal([texts[index] for index in obeyed], [wheres[index] for index in obeyed])
            for index, ids in zip(obeyed, literal, strict=True):
                found[index] = ids
        return found, met

    def ends(self, texts: Sequence[str], wheres: Sequence[str]) -> list[list[int]]:
        """Where each token of texts that are data ends, in characters, with control tokens read as plain text.

        Raises:
            DataError: a text holds control tokens that cannot be read as plain text.
        """
        found = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        out = [[end for _, end in spans] for spans in found["offset_mapping"]]
        data = [("", text, "") for text in texts]
        obeyed = [i for i, text in enumerate(data) if self._ids and self._obeys(text, found["input_ids"][i])]
        if obeyed:
            twin, _ = self._twin_for([data[index] for index in obeyed], wheres[obeyed[0]])
            literal = twin.encode_batch([texts[index] for index in obeyed], add_special_tokens=False)
            for index, encoding in zip(obeyed, literal, strict=True):
                out[index] = [end for _, end in encoding.offsets]
        return out

    def _obeys(self, text: _Text, ids: list[int]) -> bool:
        """Whether other control tokens are in the ids than the template wrote."""
        wanted = [index for part in text[::2] for index in self._written(part)]
        if self._unknown is not None and any(self._unknown in part for part in text[1::2]):
            return True
        if not wanted:
            return not self._control.isdisjoint(ids)
        return [index for index in ids if index in self._control] != wanted

    def _written(self, part: str) -> list[int]:
        """The control tokens in a part of the template."""
        known = self._in_template.get(part)
        if known is None:
            known = [self._ids[name] for name in self._pattern.findall(part) if name != self._unknown]
            self._in_template[part] = known
        return known

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # the longest of those that begin at a place, as tokenizers match them
        return re.compile("|".join(re.escape(name) for name in sorted(self._ids, key=len, reverse=True)))

    def _literal(self, texts: Sequence[_Text], wheres: Sequence[str]) -> list[list[int]]:
        """Ids with the data as plain text."""
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
            wanted = [index for part in text[::2] for index in self._written(part)]
            if [index for index in ids if index in self._control] != wanted:
                message = f"{where}: holds names of the base's control tokens, which its tokenizer cannot read as text"
                raise DataError(f"{message}; take them out")
        return out

    def _twin_for(self, texts: Sequence[_Text], where: str) -> tuple[Tokenizer, dict[str, str]]:
        """A twin whose token names occur in none of the texts, and these names."""
        held = {ord(character) for text in texts for part in text for character in part if ord(character) >= _PLANES[0]}
        free = [start for start in _PLANES if held.isdisjoint(range(start, start + len(self._ids)))]
        if not free:
            raise DataError(f"{where}: holds control tokens and private characters; leave one of the two out")
        names = _stand_ins(self._ids, free[0])
        if free[0] not in self._twins:
            self._twins[free[0]] = _twin(self.tokenizer.backend_tokenizer, self._ids, names)
        return self._twins[free[0]], names


def plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text without special tokens, whatever padding and truncation the tokenizer came with."""
    return tokenizer(
        texts,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def front_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before a text (BOS), without those it puts after one (EOS)."""
    probe = "a"
    plain = plain_ids(tokenizer, [probe])[0]
    ids = list(tokenizer(probe, padding=False, truncation=False)["input_ids"])
    for start in range(len(ids) - len(plain) + 1):
        if plain and ids[start : start + len(plain)] == plain:
            return tuple(ids[:start])
    message = "the base's tokenizer changes a text's tokens when it adds special ones, which cannot be undone"
    raise ConfigError(f"{message}; use another base")


def _is_harmless(name: str, special: bool) -> bool:
    """White space, and words that were added to the vocabulary: they are what they say, and control nothing.

    Nor do the tokens that spell a byte, which a tokenizer needs under their names.
    """
    bare = name.replace(_METASPACE, " ")
    word = not special and all(letter.isalnum() or letter.isspace() for letter in bare)
    return word or bare.isspace() or _BYTE.fullmatch(name) is not None


def _stand_ins(ids: dict[str, int], start: int) -> dict[str, str]:
    return {name: chr(start + place) for place, name in enumerate(ids)}


def _twin(backend: Tokenizer, ids: dict[str, int], names: dict[str, str]) -> Tokenizer:
    """The tokenizer with other names for these tokens, under the same ids."""
    record = json.loads(backend.to_str())
    # what they add is left out here anyway, and they would miss the tokens under their names
    record["truncation"] = record["padding"] = record["post_processor"] = None
    for token in record["added_tokens"]:
        if token["content"] in names:
            token["content"] = names[token["content"]]
            # the normalizer would see the private character; some take those away
            token["normalized"] = token["normalized"] and _survives(backend, token["content"])
    model = record["model"]
    # also in the vocabulary: a model that looks up whole words, or pieces of any length, would find them there
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), *score] for piece, *score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _names_one(merge, names)]
    hint = "take such text out of the rows, or use another base"
    try:
        twin = Tokenizer.from_str(json.dumps(record))
    except Exception as error:  # tokenizers raises plain exceptions
        raise ConfigError(f"the base's tokenizer cannot read its token names as text ({error}); {hint}") from error
    for name, index in ids.items():
        if twin.token_to_id(names[name]) != index:
            raise ConfigError(f"the base's tokenizer cannot tell its token {name!r} from text spelled so; {hint}")
    return twin


def _survives(backend: Tokenizer, character: str) -> bool:
    return backend.normalizer is None or character in backend.normalizer.normalize_str(character)


def _names_one(merge: str | list[str], names: dict[str, str]) -> bool:
    """Whether a merge makes one of these tokens, or goes on from one."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
