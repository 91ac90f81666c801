"""Words and characters without a language model: TF-IDF and logistic regression, for texts with labels.

A term's count c in a text weighs (1 + ln c) times its inverse document frequency; each text's vector has norm 1.

Source: Salton and Buckley 1988, doi 10.1016/0306-4573(88)90021-0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorchestra.methods.contract import Fitted, Meter, MethodContext, Progress
from lorchestra.methods.linear import Sklearn, TextClassifier, check_labels
from lorchestra.methods.training import changed
from lorchestra.types import Example

MAX_CHARACTERS = 5_000_000
"""Training texts with more characters in total get no character n-grams by `auto`, which would take minutes."""


@dataclass(frozen=True)
class Config:
    """Penalties and features to choose from."""

    strengths: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    """Values of C, the inverse strength of the L2 penalty."""
    characters: Literal["auto", "always", "never"] = "auto"
    """Character n-grams of 2 to 5 within words, in addition to words and pairs of words. auto: where held-out rows have
    a lower NLL with them."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Fit the regression; `chosen` has C, and with `characters=auto` the `features`: 0 words, 1 also characters.

    Raises:
        ConfigError: rows have choices instead of a label set, the training texts have no words, or a strength is not
            above 0.
    """
    check_labels(context, "tfidf")
    meter = Meter()
    pipeline = meter.open(context, changed(context.config, adapt={"members": 1}))
    features = {"words": make_words, "words and characters": make_words_and_characters}
    if config.characters == "always":
        del features["words"]
    elif config.characters == "never" or sum(len(row.question) for row in context.train) > MAX_CHARACTERS:
        del features["words and characters"]
    return TextClassifier("tfidf", pipeline, _texts, features, config.strengths, base_passes=0.0).fit(context, meter)


def make_words() -> Sklearn:
    """TF-IDF of words and pairs of words, in lower case."""
    return _vectorizer(analyzer="word", ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")


def make_words_and_characters() -> Sklearn:
    """The same, and TF-IDF of 2 to 5 characters within words that occur in at least two texts."""
    from sklearn.pipeline import make_union

    return make_union(make_words(), _vectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=2))


def _vectorizer(**settings: object) -> Sklearn:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, **settings)


def _texts(examples: Sequence[Example], progress: Progress | None) -> list[str]:
    return [row.question for row in examples]
