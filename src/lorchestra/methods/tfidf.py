"""Words and characters without a language model: TF-IDF and logistic regression, for texts with labels.

A term's count c in a text weighs (1 + ln c) times its inverse document frequency; each text's vector has norm 1.

Source: Salton and Buckley 1988, doi 10.1016/0306-4573(88)90021-0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lorchestra.methods.contract import Fitted, Meter, MethodContext, Progress
from lorchestra.methods.linear import TextClassifier, check_labels, fit_by_question
from lorchestra.methods.training import changed
from lorchestra.training.linear import Sklearn
from lorchestra.types import Example

MAX_CHARACTERS = 5_000_000
"""Training texts with more characters in total get no character n-grams by `auto`, which would take minutes."""

MAX_COEFFICIENTS = 10_000_000
"""Most features times labels: the solver keeps some 25 vectors of this length, 2 GB."""


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
    if context.labels is None and context.questions:
        return fit_by_question(context, lambda one: fit(one, config))
    check_labels(context, "tfidf")
    meter = Meter()
    pipeline = meter.open(context, changed(context.config, adapt={"members": 1}))
    assert context.labels is not None
    most = MAX_COEFFICIENTS // len(context.labels)
    features = {
        "words": partial(make_words, most),
        "words and characters": partial(make_words_and_characters, most),
    }
    if config.characters == "always":
        del features["words"]
    elif config.characters == "never" or sum(len(row.question) for row in context.train) > MAX_CHARACTERS:
        del features["words and characters"]
    return TextClassifier("tfidf", pipeline, _texts, features, config.strengths, base_passes=0.0).fit(context, meter)


def make_words(most: int) -> Sklearn:
    """TF-IDF of words and pairs of words, in lower case; at most `most` of them, those in the most texts."""
    return _vectorizer(most, analyzer="word", ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")


def make_words_and_characters(most: int) -> Sklearn:
    """The same, and TF-IDF of 2 to 5 characters within words that occur in at least two texts; half of `most` each."""
    from sklearn.pipeline import make_union

    return make_union(make_words(most // 2), _vectorizer(most // 2, analyzer="char_wb", ngram_range=(2, 5), min_df=2))


def _vectorizer(most: int, **settings: object) -> Sklearn:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, max_features=most, **settings)


def _texts(examples: Sequence[Example], progress: Progress | None) -> list[str]:
    return [row.question for row in examples]
