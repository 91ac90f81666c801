"""Fine-tune an orchestra of LoRA adapters on one frozen LLM, for answers that know when they don't know.

    ensemble = lorchestra.Ensemble.train(config, "runs/reviews")  # config: RunConfig
    for answer in ensemble.predict(["a good film"]):
        print(answer.prediction, answer.confidence)

The public names, each imported at its first use, so that `import lorchestra` does not wait for torch:

- `Ensemble`: `train`, `load` and `from_peft` return one; `predict` returns `Answers`, an iterator of `Answer`;
  `ask` takes typed questions (`Question`); `evaluate` returns an `Evaluation` (of `MethodScores`, `OodScores`,
  `EarlyExitScores`, `QuestionScores`) or raises `UnsavedEvaluationError`, which has it; `as_module` returns an
  `EnsembleModule`; `save_pretrained` writes PEFT folders. `Ensemble.run` is a `Run` (the run directory; its
  `read_search` returns a `SearchRecord` of `TrialRecord`), `Ensemble.record` an `EnsembleRecord` with a `MemberRecord`
  per member, `Ensemble.pipeline` a `Pipeline`, whose methods return `Predictions`, `Ensemble.calibration` the
  `Calibration` of the mixture (in the run, a `CalibrationRecord` of a `QuestionCalibration` per question). `calibrate`
  returns the `Decisions` by which `predict` then decides: thresholds with their `Certificate`, and prediction sets;
  `monitor` a `Monitoring`, whether new rows are like those that certified.
- `distill_run` teaches one LoRA the answers of a finished ensemble, and a head its mutual information, as a
  `DistillConfig` says; the result is a run that `Ensemble.load` takes (its `read_distillation` returns a
  `DistillRecord`).
- `read_task` and `build_module`: the rows (`Task` of `Example`) and the untrained members (`EnsembleModule`) for a
  custom training loop. `answers_from` turns `Predictions` into answers.
- Configuration: `RunConfig` of `BaseConfig`, `AdaptConfig`, `DataConfig` (with `FieldsConfig`, `ReadConfig`,
  `PromptConfig`), `TrainConfig`, `RegularizeConfig` and `EvaluateConfig`.
- `Callback`: reports of a training (`StepReport`, `TrainState`) and of other work; when one asks to stop, the job ends
  with `Interrupted`. Messages go to the logger `lorchestra`.
- Errors: `LorchestraError`, and below it `ConfigError`, `DataError`, `InputError`, `CheckpointError`, `RequestError`
  and `TrainingError`.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorchestra.config.adapt import AdaptConfig as AdaptConfig
    from lorchestra.config.adapt import BaseConfig as BaseConfig
    from lorchestra.config.data import DataConfig as DataConfig
    from lorchestra.config.data import FieldsConfig as FieldsConfig
    from lorchestra.config.data import PromptConfig as PromptConfig
    from lorchestra.config.data import ReadConfig as ReadConfig
    from lorchestra.config.distill import DistillConfig as DistillConfig
    from lorchestra.config.run import EvaluateConfig as EvaluateConfig
    from lorchestra.config.run import RegularizeConfig as RegularizeConfig
    from lorchestra.config.run import RunConfig as RunConfig
    from lorchestra.config.run import TrainConfig as TrainConfig
    from lorchestra.errors import CheckpointError as CheckpointError
    from lorchestra.errors import ConfigError as ConfigError
    from lorchestra.errors import DataError as DataError
    from lorchestra.errors import InputError as InputError
    from lorchestra.errors import LorchestraError as LorchestraError
    from lorchestra.errors import RequestError as RequestError
    from lorchestra.errors import TrainingError as TrainingError
    from lorchestra.inference.pipeline import Pipeline as Pipeline
    from lorchestra.metrics.calibrator import Calibration as Calibration
    from lorchestra.metrics.certificates import Certificate as Certificate
    from lorchestra.metrics.decisions import Decisions as Decisions
    from lorchestra.metrics.monitoring import Monitoring as Monitoring
    from lorchestra.metrics.result import EarlyExitScores as EarlyExitScores
    from lorchestra.metrics.result import Evaluation as Evaluation
    from lorchestra.metrics.result import MethodScores as MethodScores
    from lorchestra.metrics.result import OodScores as OodScores
    from lorchestra.metrics.result import QuestionScores as QuestionScores
    from lorchestra.questions import Question as Question
    from lorchestra.runs.build import build_module as build_module
    from lorchestra.runs.distill import distill_run as distill_run
    from lorchestra.runs.ensemble import Ensemble as Ensemble
    from lorchestra.runs.evaluate import UnsavedEvaluationError as UnsavedEvaluationError
    from lorchestra.runs.predict import Answer as Answer
    from lorchestra.runs.predict import Answers as Answers
    from lorchestra.runs.predict import answers_from as answers_from
    from lorchestra.runs.rows import read_task as read_task
    from lorchestra.store.calibration_record import CalibrationRecord as CalibrationRecord
    from lorchestra.store.calibration_record import QuestionCalibration as QuestionCalibration
    from lorchestra.store.distill_record import DistillRecord as DistillRecord
    from lorchestra.store.ensemble_record import EnsembleRecord as EnsembleRecord
    from lorchestra.store.ensemble_record import MemberRecord as MemberRecord
    from lorchestra.store.run import Run as Run
    from lorchestra.store.search_record import SearchRecord as SearchRecord
    from lorchestra.store.search_record import TrialRecord as TrialRecord
    from lorchestra.training.callbacks import Callback as Callback
    from lorchestra.training.callbacks import Interrupted as Interrupted
    from lorchestra.training.callbacks import StepReport as StepReport
    from lorchestra.training.checkpoint import TrainState as TrainState
    from lorchestra.training.module import EnsembleModule as EnsembleModule
    from lorchestra.types import Example as Example
    from lorchestra.types import Predictions as Predictions
    from lorchestra.types import Task as Task

_MODULES = {
    "config.adapt": ("AdaptConfig", "BaseConfig"),
    "config.data": ("DataConfig", "FieldsConfig", "PromptConfig", "ReadConfig"),
    "config.distill": ("DistillConfig",),
    "config.run": ("EvaluateConfig", "RegularizeConfig", "RunConfig", "TrainConfig"),
    "errors": (
        *("CheckpointError", "ConfigError", "DataError", "InputError"),
        *("LorchestraError", "RequestError", "TrainingError"),
    ),
    "inference.pipeline": ("Pipeline",),
    "metrics.calibrator": ("Calibration",),
    "metrics.certificates": ("Certificate",),
    "metrics.decisions": ("Decisions",),
    "metrics.monitoring": ("Monitoring",),
    "metrics.result": ("EarlyExitScores", "Evaluation", "MethodScores", "OodScores", "QuestionScores"),
    "questions": ("Question",),
    "runs.build": ("build_module",),
    "runs.distill": ("distill_run",),
    "runs.ensemble": ("Ensemble",),
    "runs.evaluate": ("UnsavedEvaluationError",),
    "runs.predict": ("Answer", "Answers", "answers_from"),
    "runs.rows": ("read_task",),
    "store.calibration_record": ("CalibrationRecord", "QuestionCalibration"),
    "store.distill_record": ("DistillRecord",),
    "store.ensemble_record": ("EnsembleRecord", "MemberRecord"),
    "store.run": ("Run",),
    "store.search_record": ("SearchRecord", "TrialRecord"),
    "training.callbacks": ("Callback", "Interrupted", "StepReport"),
    "training.checkpoint": ("TrainState",),
    "training.module": ("EnsembleModule",),
    "types": ("Example", "Predictions", "Task"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

_DEPRECATED = {
    "build_session": ("runs.build", "build_pipeline", "build_module(config, task)"),
    "evaluate_run": ("runs.evaluate", "evaluate_run", "Ensemble.evaluate(...)"),
    "import_run": ("runs.import_peft", "import_run", "Ensemble.from_peft(folders, out, ...)"),
    "load_run": ("runs.ensemble", "load_run", "Ensemble.load(directory)"),
    "prediction_rows": ("runs.predict", "prediction_rows", "answers_from(predictions)"),
    "read_rows": ("runs.rows", "read_rows", "read_task(config)"),
    "train_run": ("runs.train", "train_run", "Ensemble.train(config, out, ...)"),
}
"""Earlier names, for one release: module, name there, and the replacement."""

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name not in _DEPRECATED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute, replacement = _DEPRECATED[name]
    text = f"lorchestra.{name} will be removed in the next release; use lorchestra.{replacement}"
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
