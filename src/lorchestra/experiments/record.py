"""What a run directory says of itself: its description, written first, and the record of its ensemble, written last."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lorchestra.config import to_yaml
from lorchestra.engine.config import RunConfig
from lorchestra.engine.session import Session
from lorchestra.experiments.build import environment
from lorchestra.experiments.rows import RunRows, absolute_paths
from lorchestra.store.atomic import atomic_write_json, atomic_write_text
from lorchestra.store.run_dir import RunDir


def write_description(run: RunDir, resolved: RunConfig, rows: RunRows, session: Session) -> None:
    """Write splits, environment and configuration; `config.yaml` last, since it makes the directory a run."""
    atomic_write_json(run.splits, rows.record())
    atomic_write_json(run.environment, environment(session.base))
    atomic_write_text(run.config, to_yaml(dataclasses.replace(resolved, data=absolute_paths(resolved.data))))


def ensemble_record(
    session: Session, rows: RunRows, members: Sequence[dict[str, Any]], cost: dict[str, Any]
) -> dict[str, Any]:
    """The content of `ensemble.json`.

    Args:
        session: base, prompt and scoring.
        rows: the task's rows, for its name and labels.
        members: path, checksum and state of each member, and for imported ones its own rank and scaling.
        cost: what training cost here.
    """
    return {
        "base": {
            "id": session.base.id,
            "revision": session.base.revision,
            "digest": session.base.digest,
            "path": session.base.path_for_peft,
        },
        "tokenizer_digest": session.base.tokenizer_digest,
        "num_members": len(members),
        "members": members,
        "task": rows.task.name,
        "labels": rows.task.labels,
        "prompt_template": session.template.text(session.scoring),
        "chat_template": session.template.chat,
        "system_prompt": session.data.prompt.system_prompt,
        "max_length": session.max_length,
        "scoring": session.scoring,
        "normalize": session.data.normalize,
        "cost": cost,
    }
