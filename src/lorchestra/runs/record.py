"""What a run directory says of itself: its description, written first, and the record of its ensemble, written last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.mappings import to_mapping, to_yaml
from lorchestra.config.run import RunConfig
from lorchestra.inference.pipeline import Pipeline
from lorchestra.runs.build import environment
from lorchestra.runs.rows import RunRows, absolute_settings
from lorchestra.store.atomic import atomic_write_json, atomic_write_text
from lorchestra.store.run_dir import RunDir
from lorchestra.training.trainer import Trainer


def write_description(run: RunDir, resolved: RunConfig, rows: RunRows, pipeline: Pipeline) -> None:
    """Write splits, environment and configuration; `config.yaml` last, since it makes the directory a run."""
    atomic_write_json(run.splits, rows.record())
    atomic_write_json(run.environment, environment(pipeline.base))
    atomic_write_text(run.config, to_yaml(absolute_settings(resolved)))


def choice_end(version: int) -> str:
    """Which rows have an end after their choices, by the version of their prompts, as `ensemble.json` says it."""
    return "never" if version == 1 else "where_needed"


def trained_members(
    trainer: Trainer,
    written: Sequence[dict[str, str]],
    members: Sequence[int] | None = None,
    adapt: AdaptConfig | None = None,
) -> list[dict[str, Any]]:
    """What `ensemble.json` says of trained members.

    Args:
        trainer: which has trained them.
        written: their folders (see `save_members`).
        members: which of the trainer's they are, in this order; by default all.
        adapt: the configuration that stands beside the record, by default the trainer's; where members have another
            rank or scaling, the record names those of every member.
    """
    adapt = adapt or trainer.model.adapt
    chosen = range(trainer.model.num_members) if members is None else members
    adapter_settings = [trainer.model.adapter_settings[m] for m in chosen]
    differ = any((own.r, own.scaling) != (adapt.r, adapt.scaling) for own in adapter_settings)
    records = []
    for index, (m, own, files) in enumerate(zip(chosen, adapter_settings, written, strict=True)):
        state = trainer.state.members[m]
        record: dict[str, Any] = {
            "path": f"members/member_{index:02d}",
            "sha256": files["sha256"],
            "seed": trainer.settings[m].dropout_seed,
            "state": state.status,
            "best_step": state.best_step,
            "val_nll": state.best_nll,
        }
        if state.status == "failed":
            record["reason"] = state.reason
        records.append(record | ({"r": own.r, "scaling": own.scaling} if differ else {}))
    return records


def ensemble_record(
    pipeline: Pipeline, rows: RunRows, members: Sequence[dict[str, Any]], cost: dict[str, Any]
) -> dict[str, Any]:
    """The content of `ensemble.json`.

    Args:
        session: base, prompt and scoring.
        rows: the task's rows, for its name and labels.
        members: path, checksum and state of each member, and its rank and scaling where they are its own.
        cost: what training cost here.
    """
    template = pipeline.template
    frame = template.frame if template.chat and template.version > 1 else None
    return {
        "base": {
            "id": pipeline.base.id,
            "revision": pipeline.base.revision,
            "digest": pipeline.base.digest,
            "path": pipeline.base.path_for_peft,
        },
        "tokenizer_digest": pipeline.base.tokenizer_digest,
        "num_members": len(members),
        "members": members,
        "task": rows.task.name,
        "labels": rows.task.labels,
        "prompt_template": pipeline.template.text(pipeline.scoring),
        "chat_template": pipeline.template.chat,
        "system_prompt": pipeline.data.prompt.system_prompt,
        "choice_end": choice_end(template.version),
        "chat_frame": None if frame is None else to_mapping(frame),
        "answer_prefix": template.answer_prefix,
        "max_length": pipeline.max_length,
        "scoring": pipeline.scoring,
        "normalize": pipeline.data.normalize,
        "cost": cost,
    }
