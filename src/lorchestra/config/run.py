"""Settings of training and evaluation, and the whole configuration of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

from lorchestra.config.adapt import AdaptConfig, BaseConfig, check_adapt, check_base
from lorchestra.config.data import DataConfig, check_data
from lorchestra.config.mappings import check_magnitudes, check_types, read_recipe
from lorchestra.errors import ConfigError

_MAX_RESAMPLES = 100_000


@dataclass(frozen=True)
class TrainConfig:
    """Training of all members, in lockstep. Options and recipes may use transformers' names (learning_rate,
    num_train_epochs, per_device_train_batch_size, max_grad_norm, early_stopping_patience)."""

    seed: int = 0
    """Run seed; each member's initialization, data order and dropout derive from it and the member's index."""
    epochs: int | Literal["auto"] = "auto"
    """Passes over the training rows; auto ends them by validation NLL in a short search before the training."""
    batch_size: int = 8
    """Rows per member in one optimizer step."""
    lr: float | Literal["auto"] = "auto"
    """Peak learning rate of AdamW; auto compares several in a short search before the training."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after the warm-up."""
    warmup: float = 0.06
    """Share of all steps in which the learning rate rises from zero, in [0, 1)."""
    clip_norm: float = 1.0
    """Maximum gradient norm of a member; 0 turns clipping off."""
    patience: int = 0
    """Stop a member after this many consecutive evaluations without a better criterion; 0: no early stopping."""
    keep: Literal["best", "last"] = "best"
    """Adapter of each member to save: the best one by the criterion, or the last."""
    criterion: Literal["nll", "scaled_nll"] = "scaled_nll"
    """What is best on the validation rows, for the kept adapters, patience and the search: NLL, or NLL after
    scaling with one temperature. With nll trainings are shorter and less accurate; it is for raw probabilities."""
    calibration: Literal["auto", "temperature", "vector", "isotonic", "none"] = "auto"
    """How the probabilities of the mixture are calibrated on the validation rows after the training: one
    temperature, a scale and a bias per label (vector), isotonic regression of the largest probability,
    the best of them by cross-validation (auto), or not at all (none)."""
    token_budget: int | None = None
    """Maximum tokens of a packed micro-batch in training (2.5 times as many in prediction); bounds
    memory. Default: by device (CPU: 640) plus first tokens that all rows share, fewer if memory
    is short, at least the longest row."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, more time, the same gradients."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints: the most that a crash can cost."""

    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "num_train_epochs": "epochs",
            "per_device_train_batch_size": "batch_size",
            "learning_rate": "lr",
            "max_grad_norm": "clip_norm",
            "early_stopping_patience": "patience",
        }
    )
    """transformers' names of settings, accepted in recipes and on the command line; saved under the names above."""
    SAVED_WITHOUT: ClassVar[Mapping[str, object]] = MappingProxyType({"criterion": "nll", "calibration": "none"})
    """Runs that were saved without these settings have neither."""

    @property
    def is_auto(self) -> bool:
        """Whether the learning rate or the number of epochs has to be searched before the training."""
        return "auto" in (self.lr, self.epochs)

    def filled(self, lr: float, epochs: int) -> TrainConfig:
        """The same with these numbers where it has none."""
        return dataclasses.replace(
            self, lr=lr if self.lr == "auto" else self.lr, epochs=epochs if self.epochs == "auto" else self.epochs
        )

    @property
    def peak_lr(self) -> float:
        """The learning rate, as given or as a search settled it.

        Raises:
            ConfigError: it is auto.
        """
        if self.lr == "auto":
            raise ConfigError("train.lr: auto is searched by lorchestra train; give a number here, such as 1e-3")
        return self.lr

    @property
    def num_epochs(self) -> int:
        """The number of epochs, as given or as a search settled it.

        Raises:
            ConfigError: it is auto.
        """
        if self.epochs == "auto":
            raise ConfigError("train.epochs: auto is searched by lorchestra train; give a number here, such as 4")
        return self.epochs


@dataclass(frozen=True)
class RegularizeConfig:
    """Regularizers, the paper's and others; they can be combined, and each is logged per member."""

    weight_decay_b: float = 0.0
    """Decoupled weight decay of B, towards the base (the paper: 1e2, 1e3); needs lr * weight_decay_b < 1."""
    weight_decay_a: float = 0.0
    """Decoupled weight decay of A, which makes members more similar; needs lr * weight_decay_a < 1."""
    weight_decay_ba: float = 0.0
    """Weight in the loss of half the squared norm of scaling * B A, the adapters' change of the base's weights."""
    kl_beta: float = 0.0
    """Weight of the KL divergence from the base's answer distribution."""
    kl_direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(member || base); reverse: KL(base || member)."""
    kl_over: Literal["options", "vocabulary"] = "options"
    """Distribution of the KL: over the row's choices, or over the vocabulary at the answer's first token."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over the row's choices, in [0, 1)."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Baselines and intervals of the evaluation."""

    few_shot: int = 4
    """Training rows shown before each question to the few-shot base; 0 leaves this baseline out."""
    tfidf: bool = True
    """For texts with labels, also evaluate logistic regression on TF-IDF of the training rows' words."""
    frozen: bool = True
    """For texts with labels, also evaluate logistic regression on the frozen base's hidden states."""
    full: bool = False
    """Include the zero-shot and few-shot base where one takes more than a quarter of the training's time."""
    mc_dropout: bool = True
    """Also evaluate MC dropout of one LoRA with M passes, if members were trained with dropout."""
    temperature: bool = False
    """Also show the mixture and the best member with one temperature each, fitted on validation rows; where the run
    is calibrated, the best member is shown so anyway."""
    resamples: int = 1000
    """Bootstrap resamples of each 95 % interval."""


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run; saved with it, and enough to repeat it."""

    base: BaseConfig = field(default_factory=BaseConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    regularize: RegularizeConfig = field(default_factory=RegularizeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


def check_training(config: TrainConfig, regularize: RegularizeConfig) -> None:
    """Check that settings are in range and can work together, before any work is done.

    Raises:
        ConfigError: names the field, its value and what to do.
    """
    check_magnitudes(config, "train")
    check_magnitudes(regularize, "regularize")
    positive = {"epochs": config.epochs, "batch_size": config.batch_size, "lr": config.lr}
    for name, value in positive.items():
        if value != "auto" and not 0 < value < math.inf:
            raise ConfigError(f"train.{name}: {value} is not a finite number above 0")
    if not 0 <= config.warmup < 1:
        raise ConfigError(f"train.warmup: {config.warmup} is not in [0, 1)")
    if config.token_budget is not None and config.token_budget < 1:
        raise ConfigError(f"train.token_budget: {config.token_budget} is less than 1; leave it out for the default")
    if not config.checkpoint_every_s >= 0:  # NaN too
        raise ConfigError(f"train.checkpoint_every_s: {config.checkpoint_every_s} is not a number from 0 up")
    for name, value in {"patience": config.patience, "clip_norm": config.clip_norm}.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"train.{name}: {value} is not a finite number from 0 up")
    decays = {"weight_decay_a": regularize.weight_decay_a, "weight_decay_b": regularize.weight_decay_b}
    strengths = decays | {"weight_decay_ba": regularize.weight_decay_ba, "kl_beta": regularize.kl_beta}
    for name, value in strengths.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"regularize.{name}: {value} is not a finite number from 0 up")
    if not 0 <= regularize.label_smoothing < 1:
        raise ConfigError(f"regularize.label_smoothing: {regularize.label_smoothing} is not in [0, 1)")
    for name, value in decays.items():
        if config.lr == "auto":  # the search leaves out rates that are too large
            continue
        product = config.lr * value
        if product >= 1:
            raise ConfigError(
                f"regularize.{name}: train.lr * {name} = {config.lr:g} * {value:g} = {product:g} must be below 1, or"
                f" each step overshoots zero; choose {name} below {1 / config.lr:g}, or a smaller train.lr"
            )


def check_init(init_lora_weights: bool | str, regularize: RegularizeConfig) -> None:
    """Refuse decay of A or B towards zero if zero is not the base.

    Decay of the product is not affected: a member's change of the weights is `B A` minus its frozen initial value.

    Raises:
        ConfigError: names both fields.
    """
    for name in ("weight_decay_a", "weight_decay_b"):
        value = getattr(regularize, name)
        if value > 0 and init_lora_weights == "pissa":
            raise ConfigError(
                f"regularize.{name}: {value:g}, but with adapt.init_lora_weights: pissa, decay would pull members"
                " towards the base without its principal components (A and B at zero); leave one of them out, or use"
                " regularize.weight_decay_ba or regularize.kl_beta, which pull towards the base"
            )


def check_loftq(base: BaseConfig, adapt: AdaptConfig) -> None:
    """Refuse an initialization by the error of quantizing where nothing is quantized.

    Raises:
        ConfigError: names both fields.
    """
    if adapt.init_lora_weights == "loftq" and base.quantization == "none":
        raise ConfigError(
            "adapt.init_lora_weights: loftq starts at what quantizing changes, and base.quantization is none; set it to"
            " nf4 or int8, with a base that has plain weights"
        )


def check_head(scoring: str, regularize: RegularizeConfig) -> None:
    """Refuse a penalty towards the base's answers where the base has none.

    Raises:
        ConfigError: names both fields.
    """
    if scoring == "head" and regularize.kl_beta > 0:
        raise ConfigError(
            f"regularize.kl_beta: {regularize.kl_beta:g} is a penalty towards the base's answers, but with"
            " data.scoring: head there are none, since the base has no classification head; use another scoring, or"
            " leave it out"
        )


def check_evaluation(config: EvaluateConfig) -> None:
    """Check settings that would otherwise fail only after training.

    Raises:
        ConfigError: names the field and its value.
    """
    check_magnitudes(config, "evaluate")
    if config.few_shot < 0:
        raise ConfigError(f"evaluate.few_shot: {config.few_shot} is less than 0; 0 leaves this baseline out")
    if not 0 <= config.resamples <= _MAX_RESAMPLES:
        raise ConfigError(f"evaluate.resamples: {config.resamples} is not in [0, {_MAX_RESAMPLES}]")


def check_run(config: RunConfig) -> None:
    """Check a configuration as far as possible before anything is read or loaded.

    Raises:
        ConfigError: names the field and its value.
    """
    check_types(config, RunConfig)
    check_base(config.base)
    check_adapt(config.adapt)
    check_data(config.data)
    check_training(config.train, config.regularize)
    check_init(config.adapt.init_lora_weights, config.regularize)
    check_loftq(config.base, config.adapt)
    check_head(config.data.scoring, config.regularize)
    check_evaluation(config.evaluate)


def read_config(path: Path) -> RunConfig:
    """The configuration in a run's `config.yaml`, with the rules of the version that saved it.

    Raises:
        ConfigError: the file is missing, truncated or not a configuration, or it names a file of label names, which no
            run saves: a run from elsewhere must not cause files outside of it to be read.
    """
    config = read_recipe(path, RunConfig, whole=True)
    check_run(config)
    for item in config.data.read.label_names:
        if "=" not in item:
            raise ConfigError(
                f"{path}: data.read.label_names has {item[:100]!r}, not the form label=name that runs save; the file"
                " was changed"
            )
    return config
