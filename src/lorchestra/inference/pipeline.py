"""A loaded base with members, together with how a task's rows become tokens for it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorchestra.config.data import DataConfig
from lorchestra.data.encode import EncodedSplit, can_use_letters, encode
from lorchestra.data.prompts import PromptTemplate, ScoringMode
from lorchestra.data.splits import draw_stratified
from lorchestra.data.tokenizer import TextTokenizer
from lorchestra.inference.predict import MemberPass, PrefixReuse, member_passes, predict_early, predict_rows
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.loading import LoadedBase
from lorchestra.nn.packing import BASE
from lorchestra.types import EarlyExitPredictions, EncodedExample, Example, Predictions

logger = logging.getLogger(__name__)

_PROBED_ROWS = 200

CPU_TOKEN_BUDGET = 640
"""Tokens of a micro-batch on a CPU: larger ones gain no speed there, and cost memory (see benchmarks/)."""
CUDA_TOKEN_BUDGET = 16_384


def default_token_budget(device_type: str, shared: int = 0) -> int:
    """The token budget where none was given.

    First tokens that all rows share come on top: a micro-batch computes them once a member, and with little room beside
    them would compute them again for the member's next rows.
    """
    return (CUDA_TOKEN_BUDGET if device_type == "cuda" else CPU_TOKEN_BUDGET) + shared


@dataclass
class Pipeline:
    """What turns examples into predictions: the base, its members, the prompt and the way answers are scored."""

    base: LoadedBase
    model: EnsembleModel
    template: PromptTemplate
    data: DataConfig
    scoring: ScoringMode
    token_budget: int
    task: str
    _logged: set[str] = field(default_factory=set)
    """Keys of the messages about rows that were logged already."""

    @property
    def max_length(self) -> int:
        """The longest row in tokens."""
        return self.data.max_length or self.base.context_length

    @cached_property
    def tokens(self) -> TextTokenizer:
        """The base's tokenizer, for which rows are plain text."""
        return text_tokenizer(self.base, self.data)

    def encode(self, examples: Sequence[Example], shots: Sequence[Example] = ()) -> EncodedSplit:
        """Examples as tokens, with the session's prompt, scoring and bounds.

        With `shots` before them, rows that no longer fit are left out whatever `data.too_long` says, and not logged.
        """
        split = self.tokenize(examples, "drop" if shots else self.data.too_long, shots=shots)
        if not shots:
            for warning in split.warnings:
                self._log_once(warning, warning)
            self.log_tokens(split, examples)
        return split

    def tokenize(
        self,
        examples: Sequence[Example],
        too_long: Literal["error", "drop", "truncate"],
        *,
        bounded: bool = True,
        shots: Sequence[Example] = (),
    ) -> EncodedSplit:
        """As `encode`, without messages; without `bounded` a row may have any length."""
        return encode(
            examples,
            self.template,
            self.tokens,
            scoring=self.scoring,
            normalize=self.data.normalize,
            max_length=self.max_length if bounded else None,
            too_long=too_long,
            shots=shots,
        )

    def log_tokens(self, split: EncodedSplit, examples: Sequence[Example]) -> None:
        """Log, once each, what is odd about the tokens of some rows."""
        self._log_literal(split)
        if split.hopeless:
            self._log_once("hopeless", f"{examples[split.hopeless[0]].where}: {FORMAT_1_CHOICES}")

    def mark_logged(self, *keys: str) -> None:
        """Do not log the messages with these keys again."""
        self._logged.update(keys)

    def _log_once(self, key: str, text: str) -> None:
        if key not in self._logged:
            self._logged.add(key)
            logger.info(text)

    def _log_literal(self, split: EncodedSplit) -> None:
        """Name the tokens that rows spell out, once each: those that can be kept, with how."""
        new = {name: where for name, where in split.literal.items() if f"token {name}" not in self._logged}
        self._logged.update(f"token {name}" for name in new)
        for special in (True, False):
            names = [name for name in new if (name in self.tokens.special) == special]
            if names:
                shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
                text = f"{new[names[0]]}: rows spell out tokens of the base ({shown}), which are read as plain text"
                logger.info(text if special else f"{text}, unless --data.keep-tokens names the token when training")

    def predict(
        self,
        examples: Sequence[Example],
        passes: Sequence[MemberPass],
        split: str,
        *,
        shots: Sequence[Example] = (),
        progress: Callable[[int], None] | None = None,
    ) -> Predictions:
        """Predictions of every pass, on the rows that are not dropped for their length."""
        encoded = self.encode(examples, shots)
        log_probs = predict_rows(self.model, encoded.rows, passes, self.token_budget, progress=progress)
        return self.predictions(examples, encoded.kept, log_probs, split)

    def predict_early(
        self,
        examples: Sequence[Example],
        split: str,
        rule: ExitRule,
        progress: Callable[[int], None] | None = None,
    ) -> EarlyExitPredictions:
        """Predictions of as many members a row as the rule asks for, on the rows that are not dropped for their length.

        The rule holds whatever the order of the members; they are asked in theirs.
        """
        encoded = self.encode(examples)
        kept = [examples[index] for index in encoded.kept]
        return self.predict_encoded_early(kept, encoded.rows, split, rule, progress)

    def predict_encoded(
        self, examples: Sequence[Example], rows: Sequence[EncodedExample], split: str, prefix_reuse: PrefixReuse
    ) -> Predictions:
        """Predictions of every member, of examples with their tokens; one `prefix_reuse` serves a whole stream."""
        passes = member_passes(range(self.model.num_members))
        log_probs = predict_rows(self.model, rows, passes, self.token_budget, prefix_reuse=prefix_reuse)
        return self.predictions(examples, range(len(examples)), log_probs, split)

    def predict_encoded_early(
        self,
        examples: Sequence[Example],
        rows: Sequence[EncodedExample],
        split: str,
        rule: ExitRule,
        progress: Callable[[int], None] | None = None,
        prefix_reuse: PrefixReuse | None = None,
    ) -> EarlyExitPredictions:
        """As `predict_early`, of examples with their tokens."""
        log_probs, used = predict_early(self.model, rows, rule, self.token_budget, progress, prefix_reuse)
        parts, places = [], []
        for number in np.unique(used):
            at = np.flatnonzero(used == number)
            parts.append(self.predictions(examples, [int(e) for e in at], log_probs[:number, at], split))
            places.append(at)
        return EarlyExitPredictions(tuple(parts), tuple(places), self.model.num_members)

    def predictions(
        self, examples: Sequence[Example], kept_indices: Sequence[int], log_probs_MEC: NDArray[np.float64], split: str
    ) -> Predictions:
        """Log-probabilities of the kept examples, together with what is known of these."""
        kept = [examples[index] for index in kept_indices]
        return Predictions(
            log_probs_MEC=log_probs_MEC,
            labels=np.array([-1 if e.answer is None else e.answer for e in kept], dtype=np.int64),
            ids=tuple(e.id for e in kept),
            options=tuple(e.choices for e in kept),
            task=self.task,
            split=split,
            texts=tuple(e.question for e in kept),
        )

    def predict_members(
        self, examples: Sequence[Example], split: str, progress: Callable[[int], None] | None = None
    ) -> Predictions:
        """Predictions of every member."""
        return self.predict(examples, member_passes(range(self.model.num_members)), split, progress=progress)


FORMAT_1_CHOICES = (
    "this run is of format 1, which scores a choice without its end: one that continues another choice, or has the same"
    " tokens, cannot win; train again to have such choices scored whole"
)
"""What a run of format 1 says of rows (or labels) with such choices."""


def text_tokenizer(base: LoadedBase, data: DataConfig) -> TextTokenizer:
    """The base's tokenizer for rows.

    Raises:
        ConfigError: `data.keep_tokens` names what is no added token of it.
    """
    keep = data.keep_tokens if data.prompt.version > 1 else None
    return TextTokenizer(base.tokenizer, keep, base.num_embeddings)


def decide_scoring(
    base: LoadedBase,
    model: EnsembleModel,
    template: PromptTemplate,
    data: DataConfig,
    examples: Sequence[Example],
    token_budget: int,
) -> tuple[ScoringMode, str]:
    """How answers are scored, and why.

    `auto` takes letters if the base's zero-shot accuracy with them, on 200 training rows, exceeds chance by three
    standard errors: a base that cannot read letters would have to learn them first. The rows are drawn with even
    answers, and chance is the better of guessing and of always giving one answer: a base that only ever says "A" must
    not pass on a file sorted by answer, or with one answer in most rows. The draw does not depend on the run's seed.
    """
    if data.scoring != "auto":
        return data.scoring, "as configured"
    tokens = text_tokenizer(base, data)
    possible, reason = can_use_letters(examples, template, tokens)
    if not possible:
        return "text", reason
    probed = draw_stratified(
        [example for example in examples if example.answer is not None], _PROBED_ROWS, "auto scoring"
    )
    encoded = encode(
        probed,
        template,
        tokens,
        scoring="letter",
        max_length=data.max_length or base.context_length,
        too_long="drop",
    )
    rows: tuple[EncodedExample, ...] = encoded.rows
    found = predict_rows(model, rows, [MemberPass(BASE)], token_budget)[0]
    hits = float(np.mean([found[e].argmax() == row.answer for e, row in enumerate(rows)]))
    chance, error = _chance(rows)
    said = (
        f"zero-shot accuracy with letters {hits:.3f} on {len(rows)} training rows, chance {chance:.3f} +- {error:.3f}"
    )
    return ("letter" if hits > chance + 3 * error else "text"), said


def _chance(rows: Sequence[EncodedExample]) -> tuple[float, float]:
    """The accuracy that needs no reading, and its standard error over rows."""
    guessed = np.array([1 / len(row.choices) for row in rows])
    guessing, error = float(guessed.mean()), float(np.sqrt((guessed * (1 - guessed)).sum()) / len(rows))
    always = max(Counter(row.answer for row in rows).values()) / len(rows)
    return (always, float(np.sqrt(always * (1 - always) / len(rows)))) if always > guessing else (guessing, error)
