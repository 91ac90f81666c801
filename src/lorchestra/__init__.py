"""Fine-tune an orchestra of LoRA adapters on one frozen LLM, for answers that know when they don't know.

The names below are the whole way from Python; each is imported when it is first used, so that `lorchestra --help` does
not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorchestra.config.adapt import AdaptConfig as AdaptConfig
    from lorchestra.config.adapt import BaseConfig as BaseConfig
    from lorchestra.config.data import DataConfig as DataConfig
    from lorchestra.config.data import FieldsConfig as FieldsConfig
    from lorchestra.config.data import PromptConfig as PromptConfig
    from lorchestra.config.run import EvaluateConfig as EvaluateConfig
    from lorchestra.config.run import RegularizeConfig as RegularizeConfig
    from lorchestra.config.run import RunConfig as RunConfig
    from lorchestra.config.run import TrainConfig as TrainConfig
    from lorchestra.errors import LorchestraError as LorchestraError
    from lorchestra.runs.build import build_pipeline as build_session  # noqa: F401
    from lorchestra.runs.ensemble import load_run as load_run
    from lorchestra.runs.evaluate import evaluate_run as evaluate_run
    from lorchestra.runs.import_peft import import_run as import_run
    from lorchestra.runs.predict import prediction_rows as prediction_rows
    from lorchestra.runs.rows import read_rows as read_rows
    from lorchestra.runs.train import train_run as train_run
    from lorchestra.training.module import EnsembleModule as EnsembleModule
    from lorchestra.types import Example as Example
    from lorchestra.types import Predictions as Predictions

_HOME = {
    "AdaptConfig": "config.adapt",
    "BaseConfig": "config.adapt",
    "DataConfig": "config.data",
    "EnsembleModule": "training.module",
    "EvaluateConfig": "config.run",
    "Example": "types",
    "FieldsConfig": "config.data",
    "LorchestraError": "errors",
    "Predictions": "types",
    "PromptConfig": "config.data",
    "RegularizeConfig": "config.run",
    "RunConfig": "config.run",
    "TrainConfig": "config.run",
    "build_session": "runs.build:build_pipeline",
    "evaluate_run": "runs.evaluate",
    "import_run": "runs.import_peft",
    "load_run": "runs.ensemble",
    "prediction_rows": "runs.predict",
    "read_rows": "runs.rows",
    "train_run": "runs.train",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
