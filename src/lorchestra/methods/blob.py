"""BLoB: variational inference on one LoRA, with a Gaussian over every entry of A (Wang et al., arXiv 2406.11675).

The mean and standard deviation of A are trained together by the reparametrization trick, B and a classification head as
usual. As in the official code (github.com/Wang-ML-Lab/bayesian-peft), a step has two parts: AdamW on the loss of the
rows under sampled A, then gradient descent on the KL divergence from the prior, weighted by `mean_field.kl_weight`. In
AdamW's moments the weight would be divided out.

Samples are members: the rows of a batch are dealt to `samples` members with different samples of A, which costs no more
tokens than one LoRA. The source decorrelates the rows of a batch by Flipout's random signs, with one sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorchestra.errors import ConfigError, TrainingError
from lorchestra.methods.contract import MAX_DRAWS, Fitted, Meter, MethodContext
from lorchestra.methods.mean_field import MeanField, kl_cycle, kl_step, kl_to_prior, kl_weight
from lorchestra.methods.training import (
    MethodTraining,
    changed,
    evaluation_is_due,
    fitted_members,
    of_one_lora,
    only_first_members,
    start_training,
    train_steps,
    validation_log_probs,
)
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import nll
from lorchestra.nn.optimizer import MemberAdamW, clip_gradients
from lorchestra.training.failure import gradient_failure
from lorchestra.training.sampler import MemberSampler
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample


@dataclass(frozen=True)
class Config:
    """Samples, prior and KL term; the last four defaults are those of the official code's runs."""

    samples: int | None = None
    """Samples of A per optimizer step, to which the rows of the batch are dealt; null: M, at most the batch size."""
    draws: int | None = None
    """Draws of A that predict together; null: M, 0: the mean of A alone, in one pass."""
    init_rho: float = 0.05
    """Standard deviations start at the squares of numbers between this over sqrt(2) and this."""
    prior_std: float = 0.2
    """Standard deviation of the prior of every entry of A."""
    kl_lr: float = 0.01
    """Step size on the KL divergence, times the schedule of the learning rate; 0 leaves the KL divergence out."""
    gamma: float = 8.0
    """Cycles of the KL weight have `100 rows^(pi / gamma) / batch_size` steps, at most an epoch."""


class DealtSampler(MemberSampler):
    """Deals the batches of the first member to the first `samples` members, row by row in turn.

    Typed questions about one state stay together. In a batch of fewer rows than samples, some members have none.

    Args:
        trainer: provides settings, rows, their weights, and the batch size.
        samples: number of members that receive rows.
    """

    def __init__(self, trainer: Trainer, samples: int) -> None:
        super().__init__(trainer.settings, trainer.rows.train, trainer.config.batch_size)
        self.samples = samples
        self.weights = trainer.rows.weights

    def units(self, member: int, step: int) -> list[list[EncodedExample]]:
        """A member's share of the batch."""
        return super().units(0, step)[member :: self.samples]

    def shares(self, step: int) -> list[float]:
        """The members' shares of the batch's loss, a mean over rows weighted as in every training; they sum to 1."""
        totals = [
            sum(1.0 if self.weights is None else self.weights[row.row] for row in self.rows(member, step))
            for member in range(self.samples)
        ]
        return [total / sum(totals) for total in totals]


class PosteriorAdamW(MemberAdamW):
    """AdamW on theta (see `mean_field`) with the loss of a whole batch; replaces AdamW on the members' adapters.

    After each step the members hold the samples of the next one. Weight decay applies to B; the norm of the whole
    gradient is clipped.

    Args:
        trainer: its optimizer is replaced; its members are the samples.
        sampler: deals the batches to them.
        seed: seed of all noise.
        clip: bound of the gradient's norm; 0 for none.
        config: prior and KL term.
    """

    def __init__(self, trainer: Trainer, sampler: DealtSampler, seed: int, clip: float, config: Config) -> None:
        plain, model = trainer.optimizer, trainer.model
        super().__init__(plain.values, plain.is_B, plain.weight_decay_b, betas=plain.betas, eps=plain.eps)
        self.sampler, self.seed, self.clip, self.config = sampler, seed, clip, config
        self.peak = trainer.settings[0].lr
        self.cycle = kl_cycle(len(trainer.rows.train), trainer.config.batch_size, trainer.steps_per_epoch, config.gamma)
        self.posterior = MeanField(model.adapters)
        theta_Q = self.posterior.initial(plain.values[0], config.init_rho, seed)
        self.theta = theta_Q[None]
        is_B = torch.zeros_like(theta_Q, dtype=torch.bool)
        is_B[: len(plain.is_B)] = plain.is_B
        self.inner = MemberAdamW(self.theta, is_B, plain.weight_decay_b[:1], betas=plain.betas, eps=plain.eps)
        self.noise_SJ = theta_Q.new_zeros(sampler.samples, len(self.posterior.columns))

    @torch.no_grad()
    def start(self) -> None:
        """Take the first member's classification head into theta, and write the samples of the first step."""
        self.posterior.mean(self.theta[0]).copy_(self.values[0])
        self.write_samples()

    @torch.no_grad()
    def write_samples(self) -> None:
        """Draw the noise of the next step, and set the members to its samples.

        A sample's noise depends on the seed, the step and its index, not on the number of samples.
        """
        step, samples = self.inner.num_steps[0], range(self.sampler.samples)
        self.noise_SJ.copy_(torch.stack([self.posterior.noise(self.seed, step, sample) for sample in samples]))
        self.values[: len(samples)] = self.posterior.samples(self.theta[0], self.noise_SJ)

    @torch.no_grad()
    def write_draws(self, number: int) -> None:
        """Set the first `number` members to draws for prediction, which are the same at every call; 0: the mean."""
        if number == 0:
            self.values[0] = self.posterior.mean(self.theta[0])
            return
        noise = torch.stack([self.posterior.noise(self.seed, "draw", draw) for draw in range(number)])
        self.values[:number] = self.posterior.samples(self.theta[0], noise.to(self.theta))

    @torch.no_grad()
    def step(self, grad_MP: Tensor, lrs: Sequence[float], members: Sequence[int]) -> None:
        """Update theta, and with it all members.

        Raises:
            TrainingError: the gradient of theta overflows, although the members' may not.
        """
        step = self.inner.num_steps[0]
        shares = grad_MP.new_tensor(self.sampler.shares(step))
        grad_SP = grad_MP[: self.sampler.samples] * shares[:, None]
        grad_Q = self.posterior.pull(self.theta[0], self.noise_SJ, grad_SP)[None]
        norm = clip_gradients(grad_Q, [self.clip]).item()
        if what := gradient_failure(norm):
            raise TrainingError(f"the posterior failed (diverged: {what}); try a smaller train.lr")
        self.inner.step(grad_Q, lrs[:1], [0])
        rate = self.config.kl_lr * kl_weight(step, self.cycle) * lrs[0] / self.peak
        kl_step(self.theta[0], self.posterior, self.config.prior_std, rate)
        for m in members:
            self.num_steps[m] += 1
        self.write_samples()


class BestPosterior:
    """Keeps theta of the epoch with the best validation NLL of what predicts: the draws' mixture, or the mean.

    With `train.keep: last` nothing is evaluated, and the last theta is the best. `train.patience` has no effect.
    """

    def __init__(self, context: MethodContext, training: MethodTraining, optimizer: PosteriorAdamW, draws: int) -> None:
        self.context, self.training, self.optimizer, self.draws = context, training, optimizer, draws
        self.nll = float("inf")
        self.kept: Tensor | None = None

    def after_step(self, step: int) -> None:
        """Evaluate where an epoch has ended."""
        if not evaluation_is_due(self.training, step):
            return
        self.optimizer.write_draws(self.draws)
        members = range(max(1, self.draws))
        log_probs_MEC, answers_E = validation_log_probs(self.context, self.training, members, step)
        self.optimizer.write_samples()
        score = nll(mixture_log_probs(log_probs_MEC), answers_E)
        if score < self.nll:
            self.nll, self.kept = score, self.optimizer.theta.clone()

    def restore(self) -> None:
        """Put the best theta back, and write the draws."""
        if self.kept is not None:
            self.optimizer.theta.copy_(self.kept)
        self.optimizer.write_draws(self.draws)


def fit(context: MethodContext, config: Config) -> Fitted:
    """Train one posterior with the budget of one member, and draw M adapters.

    Keeps the epoch with the best validation NLL, or the last.

    Raises:
        ConfigError: a setting out of range, decay of A, or an unsupported initialization.
        TrainingError: training failed.
    """
    _check(context, config)
    meter = Meter()
    batch_size = context.config.train.batch_size
    samples = min(context.members, batch_size) if config.samples is None else config.samples
    draws = context.members if config.draws is None else config.draws
    # members' gradients are not clipped: the gradient of theta is
    shape = changed(context.config, adapt={"members": max(samples, draws)}, train={"clip_norm": 0.0})
    training = start_training(context, meter, of_one_lora(shape))
    only_first_members(training, samples)
    trainer = training.trainer
    trainer.sampler = sampler = DealtSampler(trainer, samples)
    clip = context.config.train.clip_norm
    trainer.optimizer = optimizer = PosteriorAdamW(trainer, sampler, context.seed, clip, config)
    best = BestPosterior(context, training, optimizer, draws)
    train_steps(context, training, best.after_step, after_prepare=optimizer.start)
    best.restore()
    rho_J = optimizer.posterior.rho(optimizer.theta[0])
    mean_P = optimizer.posterior.mean(optimizer.theta[0])
    numbers = len(mean_P) + (len(rho_J) if draws else 0)
    fitted = fitted_members(training, meter, range(max(1, draws)), numbers)
    std = float(rho_J.double().square().mean())
    kl = float(kl_to_prior(mean_P[optimizer.posterior.columns], rho_J, config.prior_std))
    chosen = {"posterior_std": std} | ({"kl_nats": kl} if math.isfinite(kl) else {})
    return dataclasses.replace(fitted, chosen=chosen, notes=_near_prior(std, config.prior_std))


def _near_prior(std: float, prior_std: float) -> list[str]:
    """A note if the posterior is about as wide as the prior."""
    if std < 0.9 * prior_std:
        return []
    return [
        f"the posterior's standard deviation, {std:.3g} on average, is about that of the prior, {prior_std:g}: the data"
        " hardly narrowed it; with a lower blob.kl_lr they count more"
    ]


def _check(context: MethodContext, config: Config) -> None:
    batch_size = context.config.train.batch_size
    if config.samples is not None and not 1 <= config.samples <= batch_size:
        raise ConfigError(f"blob.samples: {config.samples} is not in [1, {batch_size}], the rows of a batch")
    if config.draws is not None and not 0 <= config.draws <= MAX_DRAWS:
        raise ConfigError(f"blob.draws: {config.draws} is not in [0, {MAX_DRAWS:,}]")
    for name in ("prior_std", "gamma"):
        if not 0 < getattr(config, name) < math.inf:
            raise ConfigError(f"blob.{name}: {getattr(config, name)} is not a finite number above 0")
    for name in ("init_rho", "kl_lr"):
        if not 0 <= getattr(config, name) < math.inf:
            raise ConfigError(f"blob.{name}: {getattr(config, name)} must be finite and at least 0")
    if config.init_rho == 0 and config.kl_lr > 0:
        raise ConfigError(
            "blob.init_rho: at 0, where A has no variance, the KL divergence is infinite; set blob.kl_lr to 0, too"
        )
    if context.config.regularize.weight_decay_a > 0:
        raise ConfigError(
            "blob: decay of A is not supported, since the prior acts like it; set regularize.weight_decay_a to 0"
        )
    if context.config.adapt.init_lora_weights == "pissa":
        raise ConfigError(
            "blob: its prior is centered at A = 0, which with adapt.init_lora_weights: pissa is not the base; choose"
            " another initialization"
        )
