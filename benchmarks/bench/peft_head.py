"""One LoRA with a classification head, trained with PEFT and transformers alone, as their documentation does it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from lorchestra.metrics.predictive import FloatArray, IntArray, apply_temperature, fit_temperature
from lorchestra.metrics.scores import nll

from .setting import log

BATCH, EPOCHS, MAX_TOKENS = 8, 5, 512


class PeftHead:
    """A classifier on a base: `fit` trains at one rate, and keeps the epoch of the lowest scaled validation NLL.

    Args:
        base: a causal language model and its tokenizer; the model's layers are used as they are.
        num_labels: number of labels.
        layers: the adapted decoder layers; None for all.
    """

    def __init__(
        self,
        base: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        num_labels: int,
        layers: Sequence[int] | None,
    ) -> None:
        self.base, self.tokenizer, self.num_labels, self.layers = base, tokenizer, num_labels, layers

    def fit(
        self, train: tuple[list[str], IntArray], val: tuple[list[str], IntArray], test: list[str], rate: float
    ) -> tuple[float, FloatArray]:
        """The lowest scaled validation NLL, and the log-probabilities `[E, C]` of the test rows, scaled as well."""
        model = self._model()
        steps_per_epoch = math.ceil(len(train[0]) / BATCH)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
        schedule = transformers.get_linear_schedule_with_warmup(
            optimizer, round(0.06 * EPOCHS * steps_per_epoch), EPOCHS * steps_per_epoch
        )
        best: tuple[float, FloatArray] | None = None
        for epoch in range(EPOCHS):
            started = time.perf_counter()
            self._train(model, *train, optimizer, schedule, epoch)
            val_EC = self._log_probs(model, val[0])
            temperature = fit_temperature(val_EC, val[1])
            score = nll(apply_temperature(val_EC, temperature), val[1])
            seconds = time.perf_counter() - started
            log(f"PEFT head, rate {rate:g}: epoch {epoch + 1} of {EPOCHS}, validation NLL {score:.3f}, {seconds:.0f} s")
            if best is None or score < best[0]:
                best = score, apply_temperature(self._log_probs(model, test), temperature)
        assert best is not None
        return best

    def _model(self) -> PeftModel:
        torch.manual_seed(0)
        config = copy.deepcopy(self.base.config)
        config.num_labels, config.pad_token_id = self.num_labels, self.tokenizer.eos_token_id
        classifier = transformers.AutoModelForSequenceClassification.from_config(config)
        classifier.model = copy.deepcopy(self.base.model)
        # whatever the base's number format, the head is float32, as PEFT makes the adapters
        classifier.score.float().register_forward_pre_hook(lambda head, inputs: (inputs[0].float(),))
        lora = LoraConfig(
            task_type="SEQ_CLS",
            r=8,
            lora_alpha=32,
            target_modules=["q_proj", "v_proj"],
            layers_to_transform=None if self.layers is None else list(self.layers),
        )
        return get_peft_model(classifier, lora)

    def _train(
        self,
        model: nn.Module,
        texts: list[str],
        labels: IntArray,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        epoch: int,
    ) -> None:
        model.train()
        order = np.random.default_rng(epoch).permutation(len(texts))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            logits = self._logits(model, [texts[e] for e in rows])
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def _log_probs(self, model: nn.Module, texts: list[str]) -> FloatArray:
        model.eval()
        by_length = sorted(range(len(texts)), key=lambda e: len(texts[e]))
        result = np.empty((len(texts), self.num_labels))
        for start in range(0, len(texts), BATCH):
            rows = by_length[start : start + BATCH]
            logits = self._logits(model, [texts[e] for e in rows])
            result[rows] = logits.double().log_softmax(dim=-1).numpy()
        return result

    def _logits(self, model: nn.Module, texts: list[str]) -> Tensor:
        ids = [self.tokenizer(text).input_ids[:MAX_TOKENS] for text in texts]
        longest = max(map(len, ids))
        pad = self.tokenizer.eos_token_id
        tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        return model(input_ids=tokens, attention_mask=mask).logits
