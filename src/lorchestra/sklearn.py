"""A scikit-learn classifier for texts: an ensemble of LoRA adapters with `fit`, `predict`, `predict_proba`, `score`.

The only module that imports scikit-learn when it is loaded.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import read_recipe
from lorchestra.config.run import RunConfig
from lorchestra.data.in_memory import plain_labels, texts_of
from lorchestra.data.splits import hold_out
from lorchestra.data.typed_rows import answer_index
from lorchestra.errors import ConfigError, DataError, InputError, LorchestraError
from lorchestra.metrics import predictive
from lorchestra.metrics.calibrator import pooled
from lorchestra.questions import Question
from lorchestra.runs.ensemble import Ensemble, load_run
from lorchestra.runs.rows import RunRows, validation_notes
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import replacing_directory
from lorchestra.store.safe_paths import inside
from lorchestra.types import Example, Json, Predictions, Task

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise LorchestraError("lorchestra.sklearn needs scikit-learn: pip install scikit-learn") from error

Labels = NDArray[np.generic]
_PICKLED = ("config.yaml", "ensemble.json", "calibration.json", "members/*/*")
"""Files of the run directory that a pickled classifier contains: those needed for predictions."""


class LoRAEnsembleClassifier(ClassifierMixin, BaseEstimator):
    """Classify texts with an ensemble of LoRA adapters on a frozen LLM.

    X is a list, array or Series of strings, y their labels. `fit` holds out a stratified tenth of the rows for early
    stopping, model selection and calibration. Parameters that are None take the value in `config`.

    Args:
        base: base.name: hub id, directory, .gguf file, or smollm2-135m.
        members: adapt.members: number of LoRA members.
        r: adapt.r: rank of each adapter.
        lora_alpha: adapt.lora_alpha.
        target_modules: adapt.target_modules: names of the adapted linear maps.
        layers: adapt.layers: all, last:K or a list.
        dropout: adapt.dropout.
        epochs: train.epochs.
        batch_size: train.batch_size: rows per member and optimizer step.
        lr: train.lr.
        weight_decay_b: regularize.weight_decay_b.
        kl_beta: regularize.kl_beta.
        prompt: data.prompt.template: a template with {question} in place of the text.
        scoring: data.scoring: auto, letter, text, tree or head.
        label_names: the words the model reads for labels, as {0: "negative", 1: "positive"}; default `str(label)`.
        question: a typed question that is asked about the texts; y has its options, or truth values for a predicate,
            and each option must occur. The labels' names and the prompt are then the question's.
        config: all other settings, as a `RunConfig` or the path of a recipe; by default lorchestra's defaults, with
            long texts truncated.
        out: run directory to keep, for use with the command line (`lorchestra predict`); temporary by default. Fitting
            again replaces it when the new run is complete; a run that this classifier did not fit is never replaced.
        random_state: the run's seed: an integer, a RandomState, or None for a different seed at each fit.
        verbose: print progress notes and warnings to stderr.

    Attributes:
        classes_: the labels in the order of the columns of `predict_proba`.
        run_dir_: the run directory.
    """

    def __init__(
        self,
        *,
        base: str | None = None,
        members: int | None = None,
        r: int | None = None,
        lora_alpha: float | None = None,
        target_modules: Sequence[str] | None = None,
        layers: str | None = None,
        dropout: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay_b: float | None = None,
        kl_beta: float | None = None,
        prompt: str | None = None,
        scoring: str | None = None,
        label_names: Mapping[Any, str] | None = None,
        question: Question | None = None,
        config: RunConfig | str | Path | None = None,
        out: str | Path | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.base = base
        self.members = members
        self.r = r
        self.lora_alpha = lora_alpha
        self.target_modules = target_modules
        self.layers = layers
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay_b = weight_decay_b
        self.kl_beta = kl_beta
        self.prompt = prompt
        self.scoring = scoring
        self.label_names = label_names
        self.question = question
        self.config = config
        self.out = out
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> object:
        """X is one axis of strings."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        return tags

    def fit(self, X: Sequence[str], y: Sequence[object]) -> LoRAEnsembleClassifier:
        """Train the ensemble; failed members are left out with a `ConvergenceWarning`.

        Raises:
            InputError: texts or labels are invalid or too few.
            ConfigError: a parameter is out of range.
            TrainingError: every member failed.
        """
        texts = texts_of(X)
        labels = _labels(y)
        check_consistent_length(texts, labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"y holds 1 class only ({classes.tolist()[0]!r}); at least two are needed")
        options, columns = self._options(classes)
        asked = self.question
        examples = [
            Example(f"X-{i}", text, options, columns[code], f"X[{i}]", asked)
            for i, (text, code) in enumerate(zip(texts, codes, strict=True))
        ]
        config = self._config()
        try:
            splits = hold_out(examples, ("val",), config.train.seed, most=config.data.read.max_held_out)
        except DataError as error:
            raise InputError(
                f"{len(texts)} texts of {len(classes)} classes are too few: a tenth is held out for validation, and"
                " every class needs a training row; provide more"
            ) from error
        directory = _RunDirectory(self.out)
        if directory.exists and getattr(self, "run_dir_", None) != str(directory.root):
            raise ConfigError(
                f"out: {directory.root}: not empty, and not a run that this classifier has fitted; choose another"
                " directory, or remove it"
            )
        task = Task("texts", splits, options) if asked is None else Task("texts", splits, questions=(asked,))
        rows = RunRows(task, tuple(validation_notes(task)))
        replacing = replacing_directory(directory.root) if directory.exists else nullcontext(directory.root)
        with replacing as root, _logging_to_stderr(self.verbose):
            outcome = train_run(config, root, rows=rows)
        for m, reason in zip(outcome.failed_members, outcome.reasons, strict=True):
            warnings.warn(f"member {m} failed and is left out: {reason}", ConvergenceWarning, stacklevel=2)
        self._directory, self._columns = directory, columns
        self.classes_ = classes
        self.run_dir_ = str(directory.root)
        self._trained: Ensemble | None = None
        return self

    def predict(self, X: Sequence[str]) -> Labels:
        """The most probable label of each text, `[E]`."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: Sequence[str], *, raw: bool = False) -> NDArray[np.float64]:
        """The ensemble's probability of each class, `[E, C]` in the order of `classes_`.

        It is the calibrated mean over members; with `raw`, the mean as it is.
        """
        return np.exp(self._mixture(self._predictions(X).log_probs_MEC, raw))

    def uncertainty(self, X: Sequence[str], *, raw: bool = False) -> dict[str, NDArray[np.float64]]:
        """Uncertainty of the ensemble per text, `[E]` each.

        `entropy` of the calibrated mixture (with `raw`, of the mixture as it is) and `mutual_information` of the
        members as they are, which measures how far they disagree, in nats (of a distilled run, as predicted for its
        teacher); and `disagreement`, the share of member pairs with different answers.
        """
        predictions = self._predictions(X)
        return {
            "entropy": predictive.entropy(self._mixture(predictions.log_probs_MEC, raw)),
            "mutual_information": predictive.information(predictions),
            "disagreement": predictive.disagreement(predictions.log_probs_MEC),
        }

    def ensemble(self) -> Ensemble:
        """The fitted run; the first call loads the base."""
        check_is_fitted(self, "run_dir_")
        if self._trained is None:
            with _logging_to_stderr(self.verbose):
                self._trained = load_run(self.run_dir_)
        return self._trained

    def _mixture(self, log_probs_MEC: NDArray[np.float64], raw: bool) -> NDArray[np.float64]:
        """The mixture's log-probabilities in the order of `classes_`, `[E, C]`, calibrated unless `raw`."""
        trained = self.ensemble()
        calibration = trained.calibration if self._asked is None else trained.calibrations[self._asked.name]
        return pooled(log_probs_MEC, None if raw else calibration)[:, self._columns]

    @property
    def _asked(self) -> Question | None:
        """The question of the fitted run; None if it is on labels."""
        return next(iter(self.ensemble().record.questions), None)

    def _predictions(self, X: Sequence[str]) -> Predictions:
        """Every member's predictions, with choices in the order of the run's labels."""
        check_is_fitted(self, "run_dir_")
        texts = texts_of(X)
        trained, asked = self.ensemble(), self._asked
        options = trained.labels if asked is None else asked.options
        assert options is not None
        examples = [Example(f"X-{i}", text, options, None, f"X[{i}]", asked) for i, text in enumerate(texts)]
        predictions = trained.pipeline.predict_members(examples, "predict")
        if predictions.num_examples < len(texts):
            raise InputError(
                f"{len(texts) - predictions.num_examples} texts have more than {trained.pipeline.max_length} tokens,"
                " and data.too_long is drop; set it to truncate to predict all texts"
            )
        return predictions

    def _options(self, classes: Labels) -> tuple[tuple[str, ...], list[int]]:
        """The run's options, and the index of each class among them."""
        if self.question is None:
            names = self._names(classes)
            options = tuple(sorted(names))
            return options, [options.index(name) for name in names]
        if not isinstance(self.question, Question):
            raise ConfigError(f"question: {self.question!r:.60} is not a lorchestra.Question")
        columns: list[int] = []
        for label in classes.tolist():
            column = answer_index(self.question, label)
            if column is None or column in columns:
                what = "none of the question's options" if column is None else "the same option as another label"
                raise InputError(f"y: {label!r} is {what} ({', '.join(map(repr, self.question.options[:12]))})")
            columns.append(column)
        missing = [option for index, option in enumerate(self.question.options) if index not in columns]
        if missing:
            raise InputError(f"y: no row has {missing[0]!r}; give each option of the question a row, or leave it out")
        return self.question.options, columns

    def _names(self, classes: Labels) -> list[str]:
        """The words that the model reads for each class."""
        names = []
        for label in classes.tolist():
            name = str(label) if self.label_names is None else self.label_names.get(label)
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"label_names: {label!r} has {name!r}; give each label in y a distinct word")
            names.append(name)
        if len(set(names)) < len(names):
            raise InputError(f"label_names: two labels share a name ({', '.join(names)}); make the names distinct")
        return names

    def _config(self) -> RunConfig:
        """The run's configuration: `config` with the given parameters applied."""
        config = self.config
        if config is None:
            config = RunConfig(data=DataConfig(too_long="truncate"))
        elif not isinstance(config, RunConfig):
            config = read_recipe(config, RunConfig)
        given: dict[str, dict[str, object]] = {
            "base": {"name": self.base},
            "adapt": {name: getattr(self, name) for name in ("members", "r", "lora_alpha", "layers", "dropout")},
            "train": {name: getattr(self, name) for name in ("epochs", "batch_size", "lr")},
            "regularize": {"weight_decay_b": self.weight_decay_b, "kl_beta": self.kl_beta},
            "data": {"scoring": self.scoring},
        }
        if self.prompt is not None:
            given["data"]["prompt"] = dataclasses.replace(config.data.prompt, template=self.prompt)
        if self.target_modules is not None:
            if isinstance(self.target_modules, str):
                raise ConfigError(f"target_modules: {self.target_modules!r} is one string; give a list of names")
            given["adapt"]["target_modules"] = tuple(str(name) for name in self.target_modules)
        given["train"]["seed"] = self._seed()
        for part, values in given.items():
            # parameter grids contain numpy scalars, which YAML cannot represent
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items() if v is not None}
            config = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **plain)})
        return dataclasses.replace(config, data=dataclasses.replace(config.data, train=None, val=None, test=None))

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def __getstate__(self) -> dict[str, object]:
        """The pickled state: parameters and the files of the run (adapters, but not the base)."""
        state = dict(super().__getstate__())
        for name in ("_trained", "_directory"):
            state.pop(name, None)
        if "run_dir_" in state:
            root = Path(state.pop("run_dir_"))
            names = sorted(file.relative_to(root).as_posix() for pattern in _PICKLED for file in root.glob(pattern))
            state["_files"] = {name: inside(root, name).read_bytes() for name in names}
        return state

    def __setstate__(self, state: Json) -> None:
        """Restore the run into a temporary directory; the base is loaded when first needed."""
        state = dict(state)
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            self._directory = _RunDirectory(None)
            for name, content in files.items():
                path = inside(self._directory.root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.run_dir_, self._trained = str(self._directory.root), None


class _RunDirectory:
    """The directory of a classifier's run: the given one, or a temporary one that is deleted with this object."""

    def __init__(self, out: str | Path | None) -> None:
        if out is not None:
            self.root = Path(out)
            return
        directory = tempfile.mkdtemp(prefix="lorchestra-")
        self.root = Path(directory) / "run"
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)

    @property
    def exists(self) -> bool:
        """Whether it contains files."""
        return self.root.is_dir() and any(self.root.iterdir())


def _labels(y: Sequence[object]) -> Labels:
    """y as a 1d array of class labels; pandas' nullable integers become plain integers.

    Raises:
        InputError: y or a label is missing, or text and numbers are mixed.
        ValueError: y is not a classification target (raised by scikit-learn).
    """
    if y is None:
        raise InputError("LoRAEnsembleClassifier requires y to be passed, but the target y is None")
    labels = column_or_1d(plain_labels(y), warn=True)
    check_classification_targets(labels)
    return np.asarray(labels)


@contextmanager
def _logging_to_stderr(enabled: bool) -> Iterator[None]:
    """Write what the library logs to stderr, if `enabled`."""
    logger = logging.getLogger("lorchestra")
    handler, level = logging.StreamHandler(), logger.level
    if enabled:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
