"""The models of a server: runs, their members and their bases, by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from lorchestra.data.row_writer import RowWriter
from lorchestra.errors import ConfigError, LorchestraError, did_you_mean
from lorchestra.metrics.decisions import Decisions
from lorchestra.nn.packing import BASE
from lorchestra.questions import Question
from lorchestra.runs.ask import Asked, Asker, EncodedAsk, Reply
from lorchestra.runs.ensemble import Ensemble
from lorchestra.runs.similar import SimilarRows
from lorchestra.server.certificate import certificate_entry
from lorchestra.server.errors import ModelNotFoundError

logger = logging.getLogger(__name__)

ALIAS = "jev-latest"
"""Another name of the first run, which clients of /v1/systemone send by default."""
_BATCH_TOKENS_CPU, _BATCH_TOKENS_CUDA = 2_048, 65_536


class Engine(Protocol):
    """What answers questions (`runs.ask.Asker`): `encode` runs in one thread and `answer` in another."""

    def encode(self, asked: Asked) -> EncodedAsk:
        """Tokenize a question and its state."""
        ...

    def answer(self, asks: Sequence[EncodedAsk]) -> list[Reply]:
        """Answers to questions, in their order."""
        ...


@dataclass(frozen=True, eq=False)
class ServedRun:
    """A run and what the server reports about it.

    Attributes:
        name: of its directory.
        engine: answers questions.
        questions: those that it was trained on.
        member_names: of the members that answer, in order.
        created: when it was trained.
        calibrated, certified: names of the trained questions with calibrated probabilities, and with decisions.
        batch_tokens: most tokens of a batch on its device, unless configured.
        certificates: of the decisions, as `certificate_entry` has them, by trained question; those that have some.
        references: the confidences of the rows that certified, by trained question.
        writer: writes labelled rows that the run reads; None if it has no trained questions.
        similar: the index of its training rows, or why there is none; None if they are not to be shown.
    """

    name: str
    engine: Engine
    questions: tuple[Question, ...]
    member_names: tuple[str, ...]
    created: datetime
    calibrated: frozenset[str] = frozenset()
    certified: frozenset[str] = frozenset()
    batch_tokens: int = _BATCH_TOKENS_CPU
    certificates: Mapping[str, dict[str, object]] = field(default_factory=dict)
    references: Mapping[str, Sequence[float]] = field(default_factory=dict)
    writer: RowWriter | None = None
    similar: SimilarRows | str | None = None

    @classmethod
    def load(
        cls,
        directory: str,
        *,
        base: str | None = None,
        raw: bool = False,
        cache_bytes: int = 256 * 2**20,
        show_training_rows: bool = False,
    ) -> ServedRun:
        """Load a finished run.

        Args:
            directory: the run directory.
            base: where the base is now, if it has moved.
            raw: answer with the mixture as it is, without calibration and decisions.
            cache_bytes: most bytes of cached states.
            show_training_rows: index the training rows, which the page then shows.

        Raises:
            CheckpointError: see `Ensemble.load`.
        """
        ensemble = Ensemble.load(directory, base=base)
        asker = Asker(ensemble, cache_bytes=cache_bytes, raw=raw)
        names = [question.name for question in asker.questions]
        decided = {} if raw else {name: one for name in names if (one := _decisions(ensemble, name)) is not None}
        saved = Path(directory, "ensemble.json").stat().st_mtime
        on_cpu = ensemble.pipeline.model.device.type == "cpu"
        return cls(
            name=Path(directory).resolve().name,
            engine=asker,
            questions=asker.questions,
            member_names=tuple(f"member_{index:02d}" for index in ensemble.members),
            created=datetime.fromtimestamp(saved, UTC),
            calibrated=frozenset(() if raw else filter(partial(_is_calibrated, ensemble), names)),
            certified=frozenset(name for name, decisions in decided.items() if decisions.has_threshold),
            batch_tokens=_BATCH_TOKENS_CPU if on_cpu else _BATCH_TOKENS_CUDA,
            certificates={name: certificate_entry(decisions) for name, decisions in decided.items()},
            references={} if raw else _references(ensemble, names),
            writer=RowWriter(ensemble.config.data, typed=bool(ensemble.record.questions)) if names else None,
            similar=_similar(ensemble) if show_training_rows else None,
        )

    @property
    def num_members(self) -> int:
        """Number of members that answer."""
        return len(self.member_names)

    def to_dict(self) -> dict[str, object]:
        """What a page about the run shows."""
        return {
            "name": self.name,
            "questions": {question.name: self._question_entry(question) for question in self.questions},
            "num_members": self.num_members,
            "calibrated": bool(self.calibrated),
            "certified": bool(self.certified),
            "shows_training_rows": self.similar is not None,
        }

    def _question_entry(self, question: Question) -> dict[str, object]:
        name = question.name
        return question.to_dict() | {
            # the options' names again: JavaScript sorts those of an object that are integers
            "order": list(question.options),
            "calibrated": name in self.calibrated,
            "certified": name in self.certified,
            "certificate": self.certificates.get(name),
        }


def _references(ensemble: Ensemble, names: Sequence[str]) -> dict[str, Sequence[float]]:
    """The confidences of the rows that certified each of the questions."""
    record = ensemble.run.read_calibration(ensemble.record)
    references: dict[str, Sequence[float]] = {}
    for name in names:
        saved = None if record is None else record.questions.get(name, record.only).saved_decisions
        if saved is not None and saved.reference is not None:
            references[name] = saved.reference.numbers["max_prob"]
    return references


def _is_calibrated(ensemble: Ensemble, question: str) -> bool:
    return ensemble.calibrations.get(question, ensemble.calibration).is_calibrated


def _decisions(ensemble: Ensemble, question: str) -> Decisions | None:
    return ensemble.decisions_by_question.get(question, ensemble.decisions)


def _similar(ensemble: Ensemble) -> SimilarRows | str:
    """The index of a run's training rows, or why there is none; the log has the error, which may name files."""
    try:
        return SimilarRows.of_run(ensemble)
    except LorchestraError as error:
        logger.warning("no similar training rows of %s: %s", ensemble.run.root, error)
        return "The run's training rows cannot be read; the server's log says why."


@dataclass(frozen=True)
class Model:
    """What a model's name stands for: a run, its base or one of its members (`Asked.member`)."""

    name: str
    run: ServedRun
    member: int | None
    description: str


class Registry:
    """Models by name.

    Raises:
        ConfigError: no runs, two with the same name, or one with the name of the alias.
    """

    def __init__(self, runs: Sequence[ServedRun]) -> None:
        self.runs = tuple(runs)
        if not runs:
            raise ConfigError("no runs; name the directory of one")
        self._models: dict[str, Model] = {}
        for run in runs:
            if run.name in self._models or run.name == ALIAS:
                raise ConfigError(f"two models would have the name {run.name!r}; rename a run's directory")
            members = ", ".join(question.name for question in run.questions) or "no labels"
            self._add(Model(run.name, run, None, f"An ensemble of {run.num_members} LoRA members ({members})."))
            for index, member in enumerate(run.member_names):
                self._add(Model(f"{run.name}/{member}", run, index, f"One member of {run.name}, not calibrated."))
            self._add(Model(f"{run.name}/base", run, BASE, f"The base of {run.name}, without adapters."))
        first = self._models[runs[0].name]
        self._models[ALIAS] = Model(first.name, first.run, None, f"Another name of {first.name}.")

    def _add(self, model: Model) -> None:
        self._models[model.name] = model

    def find(self, name: str) -> Model:
        """The model of a name.

        Raises:
            ModelNotFoundError: no model has it.
        """
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(
                f"no model is called {name[:100]!r}; {did_you_mean(name, self._models)}", ("model",)
            )
        return model

    def to_dict(self) -> dict[str, object]:
        """All models, as clients of both wire formats read them."""
        return {
            "object": "list",
            "data": [self.entry(name) for name in self._models],
            "models": [
                {
                    "name": name,
                    "description": model.description,
                    "release_date": model.run.created.date().isoformat(),
                }
                for name, model in self._models.items()
            ],
        }

    def entry(self, name: str) -> dict[str, object]:
        """One model, as OpenAI's clients read it.

        Raises:
            ModelNotFoundError: no model has the name.
        """
        created = int(self.find(name).run.created.timestamp())
        return {"id": name, "object": "model", "created": created, "owned_by": "lorchestra"}
