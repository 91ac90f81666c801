"""An ensemble of LoRA adapters as a scikit-learn classifier of texts: `fit`, `predict`, `predict_proba`, `score`.

Needs scikit-learn (extra `sklearn`), which nothing else in lorchestra imports.
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
from lorchestra.errors import ConfigError, DataError, InputError, LorchestraError
from lorchestra.metrics import predictive
from lorchestra.runs.ensemble import Ensemble, load_run
from lorchestra.runs.rows import RunRows, validation_notes
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import replacing_directory
from lorchestra.store.safe_paths import inside
from lorchestra.types import Example, Task

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise LorchestraError("lorchestra.sklearn needs scikit-learn: pip install 'lorchestra[sklearn]'") from error

_KEPT = ("config.yaml", "ensemble.json", "members/*/*")
"""What of a run directory a pickled classifier carries with it: all that a prediction needs."""


class LoRAEnsembleClassifier(ClassifierMixin, BaseEstimator):
    """Classify texts by an ensemble of LoRA adapters on a frozen LLM.

    X is a list, array or Series of strings, y their labels. A tenth of the rows given to `fit`, stratified, stops and
    selects members and trains none. Parameters that are None are as `config` has them.

    Args:
        base: as base.name: hub id, directory, .gguf file, or smollm2-135m.
        members: as adapt.members: number of LoRA members.
        r: as adapt.r: rank of each adapter.
        lora_alpha: as adapt.lora_alpha.
        target_modules: as adapt.target_modules: names of the adapted linear maps.
        layers: as adapt.layers: all, last:K or a list.
        dropout: as adapt.dropout.
        epochs: as train.epochs.
        batch_size: as train.batch_size: rows a member sees in one optimizer step.
        lr: as train.lr.
        weight_decay_b: as regularize.weight_decay_b.
        kl_beta: as regularize.kl_beta.
        prompt: as data.prompt.template: a template in which {question} stands for the text.
        scoring: as data.scoring: auto, letter or text.
        label_names: what the model reads for each label, as {0: "negative", 1: "positive"}; by default `str(label)`.
        config: everything else: a `RunConfig` or the path of a recipe; by default lorchestra's defaults, with texts
            that are too long cut.
        out: run directory to keep, for the command line (`lorchestra predict`); by default a temporary one. Fitting
            again replaces it, once the new run is whole; what this classifier has not fitted is never replaced.
        random_state: the run's seed: an integer, a RandomState, or None for another one at each fit.
        verbose: write the messages of training and loading to stderr.

    Attributes:
        classes_: the labels in order, the columns of `predict_proba`.
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
        self.config = config
        self.out = out
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        """X is one axis of strings."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        return tags

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> LoRAEnsembleClassifier:
        """Train the ensemble; members that fail are left out, with a `ConvergenceWarning` each.

        Raises:
            InputError: texts or labels cannot be used, or are too few.
            ConfigError: a parameter is out of range.
            TrainingError: every member failed.
        """
        texts = texts_of(X)
        labels = _labels(y)
        check_consistent_length(texts, labels)
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(f"y holds 1 class only ({classes.tolist()[0]!r}); at least two are needed")
        names = self._names(classes)
        options = tuple(sorted(names))
        answers = [options.index(name) for name in names]
        examples = [
            Example(f"X-{i}", text, options, answers[code], f"X[{i}]")
            for i, (text, code) in enumerate(zip(texts, codes, strict=True))
        ]
        config = self._config()
        try:
            splits = hold_out(examples, ("val",), config.train.seed, most=config.data.read.max_held_out)
        except DataError as error:
            raise InputError(
                f"{len(texts)} texts of {len(classes)} classes are too few: a tenth is held out for validation, and"
                " every class must keep one to learn from; give more"
            ) from error
        place = _Place(self.out)
        if place.is_taken and getattr(self, "run_dir_", None) != str(place.root):
            raise ConfigError(
                f"out: {place.root}: a run is already there, or other files, and this classifier has not fitted it;"
                " choose another, or remove it"
            )
        task = Task("texts", splits, options)
        rows = RunRows(task, tuple(validation_notes(task)))
        replacing = replacing_directory(place.root) if place.is_taken else nullcontext(place.root)
        with replacing as root, _logging_to_stderr(self.verbose):
            outcome = train_run(config, root, rows=rows)
        for m, reason in zip(outcome.failed_members, outcome.reasons, strict=True):
            warnings.warn(f"member {m} failed and is left out: {reason}", ConvergenceWarning, stacklevel=2)
        self._place, self._columns = place, answers
        self.classes_ = classes
        self.run_dir_ = str(place.root)
        self._trained: Ensemble | None = None
        return self

    def predict(self, X: Sequence[str]) -> NDArray[Any]:
        """The most probable label of each text, `[E]`."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: Sequence[str]) -> NDArray[np.float64]:
        """The ensemble's probability of each class, `[E, C]` in the order of `classes_`: the members' mean."""
        return np.exp(predictive.mixture_log_probs(self._log_probs(X)))

    def uncertainty(self, X: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """How uncertain the ensemble is of each text, `[E]` each.

        `entropy` and `mutual_information` in nats (the latter is what the members' disagreement adds), `disagreement`
        the share of member pairs with different answers.
        """
        log_probs_MEC = self._log_probs(X)
        return {
            "entropy": predictive.total_entropy(log_probs_MEC),
            "mutual_information": predictive.mutual_information(log_probs_MEC),
            "disagreement": predictive.disagreement(log_probs_MEC),
        }

    def ensemble(self) -> Ensemble:
        """The fitted run, loaded; the first call loads the base."""
        check_is_fitted(self, "run_dir_")
        if self._trained is None:
            with _logging_to_stderr(self.verbose):
                self._trained = load_run(self.run_dir_)
        return self._trained

    def _log_probs(self, X: Sequence[str]) -> NDArray[np.float64]:
        """Every member's log-probabilities, `[M, E, C]`."""
        check_is_fitted(self, "run_dir_")
        texts = texts_of(X)
        trained = self.ensemble()
        options = trained.labels
        assert options is not None
        examples = [Example(f"X-{i}", text, options, None, f"X[{i}]") for i, text in enumerate(texts)]
        found = trained.pipeline.predict_members(examples, "predict")
        if found.num_examples < len(texts):
            raise InputError(
                f"{len(texts) - found.num_examples} texts have more than {trained.pipeline.max_length} tokens, and"
                " data.too_long is drop; every text needs an answer: use truncate"
            )
        return found.log_probs_MEC[:, :, self._columns]

    def _names(self, classes: NDArray[Any]) -> list[str]:
        """What the model reads for each class."""
        names = []
        for label in classes.tolist():
            name = str(label) if self.label_names is None else self.label_names.get(label)
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"label_names: {label!r} has {name!r}; give each label in y a word of its own")
            names.append(name)
        if len(set(names)) < len(names):
            raise InputError(f"label_names: two labels share a name ({', '.join(names)}); give each one of its own")
        return names

    def _config(self) -> RunConfig:
        """The run's configuration: `config` with the parameters put in."""
        config = self.config
        if config is None:
            config = RunConfig(data=DataConfig(too_long="truncate"))
        elif not isinstance(config, RunConfig):
            config = read_recipe(config, RunConfig)
        given: dict[str, dict[str, Any]] = {
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
            # parameter grids bring numpy's numbers along, which YAML does not know
            plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items() if v is not None}
            config = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **plain)})
        return dataclasses.replace(config, data=dataclasses.replace(config.data, train=None, val=None, test=None))

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: parameters, and the files of the run (the adapters, not the base)."""
        state = dict(super().__getstate__())
        for name in ("_trained", "_place"):
            state.pop(name, None)
        if "run_dir_" in state:
            root = Path(state.pop("run_dir_"))
            names = sorted(file.relative_to(root).as_posix() for pattern in _KEPT for file in root.glob(pattern))
            state["_files"] = {name: inside(root, name).read_bytes() for name in names}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the run into a temporary directory of this process; the base is loaded when it is first needed."""
        state = dict(state)
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            self._place = _Place(None)
            for name, content in files.items():
                path = inside(self._place.root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.run_dir_, self._trained = str(self._place.root), None


class _Place:
    """Where a classifier's run lies: the directory asked for, or a temporary one that goes when this object does."""

    def __init__(self, out: str | Path | None) -> None:
        if out is not None:
            self.root = Path(out)
            return
        directory = tempfile.mkdtemp(prefix="lorchestra-")
        self.root = Path(directory) / "run"
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)

    @property
    def is_taken(self) -> bool:
        """Whether something is there."""
        return self.root.is_dir() and any(self.root.iterdir())


def _labels(y: Any) -> NDArray[Any]:
    """y as one axis of class labels; whole numbers stay whole, whatever else the column of a DataFrame could hold.

    Raises:
        InputError: y is missing, or a label is, or text and numbers are mixed.
        ValueError: y holds no classes (scikit-learn's own words).
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
