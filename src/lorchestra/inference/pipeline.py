"""The pipeline from examples to predictions: base, members, prompt and scoring.

Rows of a stream are tokenized by `encode_each`: one that cannot be encoded is reported and does not stop the others.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lorchestra.config.data import DataConfig
from lorchestra.data.encode import EncodedSplit, can_use_letters, encode
from lorchestra.data.prompts import PromptTemplate, ScoringMode
from lorchestra.data.splits import draw_stratified
from lorchestra.data.tokenizer import TextTokenizer
from lorchestra.errors import ConfigError, LorchestraError
from lorchestra.inference.answer_states import predict_early_with_information, predict_with_information
from lorchestra.inference.linear_probe import NO_EARLY_EXIT, mix_probe_in, text_states
from lorchestra.inference.option_orders import OrderFlips, average, count_flips, variants
from lorchestra.inference.predict import MemberPass, PrefixReuse, member_passes, predict_rows
from lorchestra.metrics.early_exit import StopRule
from lorchestra.metrics.information import InformationHead
from lorchestra.metrics.linear_probe import LinearProbe
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.loading import LoadedBase
from lorchestra.nn.packing import BASE
from lorchestra.types import EarlyExitPredictions, EncodedExample, Example, Predictions

logger = logging.getLogger(__name__)

_NUM_PROBED = 200
"""Number of training rows for which `auto` scoring tries letters."""
_MOST_TEXTS, _WORTH_A_TREE = 10, 1.5
"""`auto` scores more labels than the first as a tree, if their texts are at least the second times as many tokens."""
_WORTH_A_HINT, _FEWEST_SAVED = 1 / 3, 8
"""Share and number of a tree's tokens from which on names with spaces instead of underscores are suggested."""

CPU_TOKEN_BUDGET = 640
"""Tokens of a micro-batch on a CPU, where larger ones are not faster and need more memory (see benchmarks/)."""
CUDA_TOKEN_BUDGET = 16_384


def default_token_budget(device_type: str, shared: int = 0) -> int:
    """The default token budget, to which first tokens that all rows share are added.

    A micro-batch computes them once per member. Without the addition, a long shared prefix would leave room for few
    rows, and would be computed again for the member's next ones.
    """
    return (CUDA_TOKEN_BUDGET if device_type == "cuda" else CPU_TOKEN_BUDGET) + shared


@dataclass
class Pipeline:
    """Turns examples into predictions: fills the prompt, tokenizes, runs members in packed passes, collects scores.

    Both training and prediction start from one. `predict_members` is the usual call. `predict` allows other passes (the
    base, MC dropout, few-shot examples), `predict_early` uses as few members per row as a rule allows, and the
    `predict_encoded` methods take tokenized rows. Predictions always use the current parameters of `model`.
    """

    base: LoadedBase
    """The loaded base with its tokenizer."""
    model: EnsembleModel
    """The base with its members."""
    template: PromptTemplate
    """The prompt of a row."""
    data: DataConfig
    """Settings of tokenization: longest row, what to do with longer ones, normalization, kept tokens."""
    scoring: ScoringMode
    """Whether choices are scored by their letters, their texts or the tree of these (see `decide_scoring`)."""
    token_budget: int
    """Most tokens in a training step's micro-batch."""
    task: str
    """Name of the task, for predictions."""
    information: InformationHead | None = None
    """Predicts the mutual information of a distilled run, which has one member; None in all others."""
    linear_probe: LinearProbe | None = None
    """Mixed into the members' answers to texts with labels; None in runs without one."""
    order_flips: OrderFlips = field(default_factory=OrderFlips)
    """Answers that changed with the order of the options, in all predictions so far."""
    _logged: set[str] = field(default_factory=set)
    """Keys of messages that were logged."""

    @property
    def max_length(self) -> int:
        """Longest allowed row, in tokens."""
        return self.data.max_length or self.base.context_length

    @cached_property
    def tokens(self) -> TextTokenizer:
        """The base's tokenizer, which reads rows as plain text."""
        return text_tokenizer(self.base, self.data)

    def encode(self, examples: Sequence[Example], shots: Sequence[Example] = ()) -> EncodedSplit:
        """Tokenize examples with the prompt, and log warnings.

        With few-shot examples `shots` in front, rows that become too long are dropped, whatever `data.too_long` is, and
        nothing is logged.
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
        """Tokenize examples without logging; with `bounded` false, a row may have any length."""
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

    def kept(self, examples: Sequence[Example]) -> Sequence[int]:
        """Indices of the rows that are not dropped for their length; nothing is tokenized where none can be."""
        return self.encode(examples).kept if self.data.too_long == "drop" else range(len(examples))

    def log_tokens(self, split: EncodedSplit, examples: Sequence[Example]) -> None:
        """Log, once each, tokens of the base in rows and choices that cannot win."""
        self._log_literal(split)
        if split.hopeless:
            self._log_once("hopeless", f"{examples[split.hopeless[0]].where}: {FORMAT_1_CHOICES}")

    def mark_logged(self, *keys: str) -> None:
        """Suppress messages with these keys."""
        self._logged.update(keys)

    def _log_once(self, key: str, text: str) -> None:
        if key not in self._logged:
            self._logged.add(key)
            logger.info(text)

    def _log_literal(self, split: EncodedSplit) -> None:
        """Log, once each, added tokens of the base that occur in rows; those that can be kept, with the option."""
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
        """Predictions of every pass, for the rows that are not dropped for their length.

        The base has no classification head: with `scoring` "head" its answers are scored by the tree of their texts.
        """
        is_base = [one.member == BASE for one in passes]
        if self.scoring == "head" and any(is_base):
            base = replace(self, scoring="tree")
            if all(is_base):
                return base.predict(examples, passes, split, shots=shots, progress=progress)
            kept = self.encode(examples).kept
            examples = [examples[index] for index in kept]
            members = self.predict(examples, [one for one in passes if one.member != BASE], split, progress=progress)
            rows = base.tokenize(examples, "error", bounded=False).rows
            of_base = predict_rows(self.model, rows, [one for one in passes if one.member == BASE], self.token_budget)
            parts = iter(members.log_probs_MEC), iter(of_base)
            return replace(members, log_probs_MEC=np.stack([next(parts[which]) for which in is_base]))
        encoded = self.encode(examples, shots)
        log_probs, information = predict_with_information(
            self.information, self.model, encoded.rows, passes, self.token_budget, progress
        )
        encodable = [examples[index] for index in encoded.kept]
        if self._averages_orders and not shots:
            log_probs = self._over_orders(encodable, log_probs, passes)
        log_probs = self.with_probe(encodable, log_probs, passes)
        return self.predictions(examples, encoded.kept, log_probs, split, information)

    def with_probe(
        self, examples: Sequence[Example], log_probs_MEC: NDArray[np.float64], passes: Sequence[MemberPass]
    ) -> NDArray[np.float64]:
        """The log-probabilities of texts with the run's labels, with the linear probe mixed into those of members."""
        members = [index for index, one in enumerate(passes) if one.member != BASE]
        features = partial(text_states, self.model, self.tokens, self.max_length, self.token_budget)
        return mix_probe_in(self.linear_probe, features, examples, log_probs_MEC, members)

    @property
    def _averages_orders(self) -> bool:
        return self.scoring == "letter" and self.data.prompt.option_orders > 1

    def _over_orders(
        self, examples: Sequence[Example], first_MEC: NDArray[np.float64], passes: Sequence[MemberPass]
    ) -> NDArray[np.float64]:
        """The log-probabilities averaged over `data.prompt.option_orders` orders, given those in the first.

        Rows in another order may have a token more than the maximum: they are cut only if such rows are.
        """
        number = self.data.prompt.option_orders
        every_KMEC = np.repeat(first_MEC[None], number, axis=0)
        present_KE = np.zeros((number, len(examples)), dtype=bool)
        present_KE[0] = True
        for k, (indices, reordered, columns) in enumerate(variants(examples, number), 1):
            if not indices:
                continue
            truncate = self.data.too_long == "truncate"
            rows = self.tokenize(reordered, "truncate" if truncate else "error", bounded=truncate).rows
            log_probs = predict_rows(self.model, rows, passes, self.token_budget)
            columns = columns[:, : log_probs.shape[2]]
            every_KMEC[k][:, indices, : log_probs.shape[2]] = np.take_along_axis(log_probs, columns[None], axis=2)
            present_KE[k, indices] = True
        members = [index for index, one in enumerate(passes) if one.member != BASE] or range(len(passes))
        flips = count_flips(every_KMEC[:, members], present_KE)
        self.order_flips.rows += flips.rows
        self.order_flips.flipped += flips.flipped
        return average(every_KMEC, present_KE)

    def predict_early(
        self,
        examples: Sequence[Example],
        split: str,
        rule: StopRule,
        progress: Callable[[int], None] | None = None,
    ) -> EarlyExitPredictions:
        """Predictions with early exit: per row, those of the first members until the rule decides the row.

        Rows that are dropped for their length are left out.
        """
        encoded = self.encode(examples)
        kept = [examples[index] for index in encoded.kept]
        return self.predict_encoded_early(kept, encoded.rows, split, rule, progress)

    def predict_encoded(
        self, examples: Sequence[Example], rows: Sequence[EncodedExample], split: str, prefix_reuse: PrefixReuse
    ) -> Predictions:
        """Predictions of every member for tokenized examples; one `prefix_reuse` serves a whole stream of calls."""
        passes = member_passes(range(self.model.num_members))
        log_probs, information = predict_with_information(
            self.information, self.model, rows, passes, self.token_budget, prefix_reuse=prefix_reuse
        )
        if self._averages_orders:
            log_probs = self._over_orders(examples, log_probs, passes)
        log_probs = self.with_probe(examples, log_probs, passes)
        return self.predictions(examples, range(len(examples)), log_probs, split, information)

    def predict_encoded_early(
        self,
        examples: Sequence[Example],
        rows: Sequence[EncodedExample],
        split: str,
        rule: StopRule,
        progress: Callable[[int], None] | None = None,
        prefix_reuse: PrefixReuse | None = None,
    ) -> EarlyExitPredictions:
        """The same as `predict_early` for tokenized examples.

        Raises:
            ConfigError: answers are averaged over several orders of the options, or the run has a linear probe.
        """
        if self.linear_probe is not None:
            raise ConfigError(NO_EARLY_EXIT)
        if self._averages_orders:
            raise ConfigError("early exit: not with data.prompt.option_orders; leave one of the two out")
        log_probs, used, information = predict_early_with_information(
            self.information, self.model, rows, rule, self.token_budget, progress, prefix_reuse
        )
        parts, indices = [], []
        for num_used in np.unique(used):
            selected = np.flatnonzero(used == num_used)
            kept, of_part = [int(e) for e in selected], None if information is None else information[selected]
            parts.append(self.predictions(examples, kept, log_probs[:num_used, selected], split, of_part))
            indices.append(selected)
        return EarlyExitPredictions(tuple(parts), tuple(indices), self.model.num_members)

    def predictions(
        self,
        examples: Sequence[Example],
        kept_indices: Sequence[int],
        log_probs_MEC: NDArray[np.float64],
        split: str,
        information_E: NDArray[np.float64] | None = None,
    ) -> Predictions:
        """Predictions of the kept examples; `information_E` is their mutual information where it is predicted."""
        kept = [examples[index] for index in kept_indices]
        return Predictions(
            log_probs_MEC=log_probs_MEC,
            labels=np.array([-1 if e.answer is None else e.answer for e in kept], dtype=np.int64),
            ids=tuple(e.id for e in kept),
            options=tuple(e.choices for e in kept),
            task=self.task,
            split=split,
            texts=tuple(e.question for e in kept),
            questions=tuple(e.asked.name for e in kept if e.asked is not None),
            predicted_information=information_E,
        )

    def predict_members(
        self, examples: Sequence[Example], split: str, progress: Callable[[int], None] | None = None
    ) -> Predictions:
        """Predictions of every member, for the rows that are not dropped for their length."""
        return self.predict(examples, member_passes(range(self.model.num_members)), split, progress=progress)


FORMAT_1_CHOICES = (
    "this run is of format 1, which scores a choice without its end: one that continues another choice, or has the same"
    " tokens, cannot win; train again to have such choices scored whole"
)
"""The warning of a run of format 1 about rows (or labels) with such choices."""


def text_tokenizer(base: LoadedBase, data: DataConfig) -> TextTokenizer:
    """The base's tokenizer for rows.

    Raises:
        ConfigError: `data.keep_tokens` has a name that is not an added token.
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
    has_labels: bool = False,
) -> tuple[ScoringMode, str]:
    """Decide how choices are scored; also returns the reason.

    `auto` uses letters if the base's zero-shot accuracy with them, on 200 training rows, exceeds chance by three
    standard errors; a weaker base would first have to learn to answer with letters. The rows are stratified by answer,
    and chance is the better of guessing and always giving the same answer, so that a base that always answers "A" does
    not pass on a file that is sorted by answer or has one answer in most rows. The draw does not depend on the run's
    seed.

    Without letters, more than 10 labels whose texts add at least 1.5 times as many tokens to a row as their tree are
    scored as a tree, all others as texts. Few labels, and questions with choices, cost little either way.
    """
    if data.scoring != "auto":
        return data.scoring, "as configured"
    if examples and examples[0].asked is not None:
        return "tree", "typed questions have different options, and their order changes nothing in a tree"
    tokens = text_tokenizer(base, data)
    possible, reason = can_use_letters(examples, template, tokens)
    if not possible:
        return text_or_tree(template, tokens, data, examples[:1] if has_labels else (), reason)
    probed = draw_stratified(
        [example for example in examples if example.answer is not None], _NUM_PROBED, "auto scoring"
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
    log_probs = predict_rows(model, rows, [MemberPass(BASE)], token_budget)[0]
    accuracy = float(np.mean([log_probs[e].argmax() == row.answer for e, row in enumerate(rows)]))
    chance, error = _chance(rows)
    reason = (
        f"zero-shot accuracy with letters {accuracy:.3f} on {len(rows)} training rows, chance {chance:.3f} +-"
        f" {error:.3f}"
    )
    if accuracy > chance + 3 * error:
        return "letter", reason
    return text_or_tree(template, tokens, data, examples[:1] if has_labels else (), reason)


def text_or_tree(
    template: PromptTemplate, tokens: TextTokenizer, data: DataConfig, labeled: Sequence[Example], reason: str
) -> tuple[ScoringMode, str]:
    """Text or tree scoring for rows like the one in `labeled` (empty if the task has no labels); adds to the reason."""
    if not labeled or len(labeled[0].choices) <= _MOST_TEXTS or data.normalize != "sum" or data.prompt.version == 1:
        return "text", reason
    as_texts, as_tree = _choice_tokens(labeled[0], template, tokens)
    reason = f"{reason}; {len(labeled[0].choices)} labels add {as_texts} tokens per row as texts, {as_tree} as a tree"
    return ("tree" if as_texts > as_tree and as_texts >= _WORTH_A_TREE * as_tree else "text"), reason


def _choice_tokens(example: Example, template: PromptTemplate, tokens: TextTokenizer) -> tuple[int, int]:
    """Tokens that a row's choices add to its prefix: as texts, and as a tree."""
    row = encode([example], template, tokens, scoring="tree").rows[0]
    return replace(row, tree=None).num_tokens - len(row.prefix), row.num_tokens - len(row.prefix)


def underscore_hint(example: Example, template: PromptTemplate, tokens: TextTokenizer) -> str | None:
    """A sentence if labels with spaces instead of underscores would save a third of their tree's tokens; else None."""
    spaced = replace(example, choices=tuple(choice.replace("_", " ") for choice in example.choices))
    if spaced.choices == example.choices or len(set(spaced.choices)) < len(set(example.choices)):
        return None
    try:
        now, then = (_choice_tokens(row, template, tokens)[1] for row in (example, spaced))
    except LorchestraError:  # such as labels that differ in white space alone
        return None
    if now - then < max(_WORTH_A_HINT * now, _FEWEST_SAVED):
        return None
    return (
        f"labels with spaces instead of underscores would save {now - then} of {now} tokens per row; rename them with"
        " --data.label-names"
    )


def _chance(rows: Sequence[EncodedExample]) -> tuple[float, float]:
    """The better accuracy of guessing and always giving the same answer, and its standard error over rows."""
    guessed = np.array([1 / len(row.choices) for row in rows])
    guessing, error = float(guessed.mean()), float(np.sqrt((guessed * (1 - guessed)).sum()) / len(rows))
    constant = max(Counter(row.answer for row in rows).values()) / len(rows)
    if constant > guessing:
        return constant, float(np.sqrt(constant * (1 - constant) / len(rows)))
    return guessing, error


TooLong = Literal["error", "drop", "truncate"]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """The result for one row: its tokens, or the reason why there are none."""

    tokens: EncodedExample | None = None
    fault: str | None = None
    """Why the row cannot be encoded; None also for a long row that `too_long` drops."""
    truncated: bool = False
    """Whether its question was cut."""


def encode_each(pipeline: Pipeline, examples: Sequence[Example], too_long: TooLong) -> list[EncodedRow]:
    """Encode each example or report why it cannot be encoded; an encoded row's index is that in `examples`.

    Bisects to isolate faulty rows, so a few of them cost only a few more calls of the tokenizer.
    """
    if len(examples) == 1:
        return [_encode_one(pipeline, examples[0], too_long)]
    try:
        split = _encode(pipeline, examples, "truncate" if too_long == "truncate" else "drop")
    except LorchestraError:
        middle = len(examples) // 2
        halves = (examples[:middle], examples[middle:])
        return _renumbered([row for half in halves for row in encode_each(pipeline, half, too_long)])
    rows = [EncodedRow()] * len(examples)
    for index, tokens in zip(split.kept, split.rows, strict=True):
        rows[index] = EncodedRow(tokens, truncated=index in split.truncated)
    if too_long == "error":
        for index in split.dropped:
            rows[index] = _encode_one(pipeline, examples[index], too_long)
    return _renumbered(rows)


def _encode_one(pipeline: Pipeline, example: Example, too_long: TooLong) -> EncodedRow:
    try:
        split = _encode(pipeline, [example], "truncate" if too_long == "truncate" else "error")
    except LorchestraError as error:
        if too_long == "drop" and _is_only_too_long(pipeline, example):
            return EncodedRow()
        return EncodedRow(fault=str(error))
    return EncodedRow(split.rows[0], truncated=bool(split.truncated))


def _is_only_too_long(pipeline: Pipeline, example: Example) -> bool:
    try:
        _encode(pipeline, [example], "error", bounded=False)
    except LorchestraError:
        return False
    return True


def _encode(pipeline: Pipeline, examples: Sequence[Example], too_long: TooLong, bounded: bool = True) -> EncodedSplit:
    split = pipeline.tokenize(examples, too_long, bounded=bounded)
    pipeline.log_tokens(split, examples)
    return split


def _renumbered(rows: list[EncodedRow]) -> list[EncodedRow]:
    return [
        row if row.tokens is None else replace(row, tokens=replace(row.tokens, row=index))
        for index, row in enumerate(rows)
    ]
