"""From a configuration and its rows to the setting in which methods are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lorchestra.engine.config import RunConfig
from lorchestra.engine.frozen import TrainingRows
from lorchestra.engine.observer import Observer
from lorchestra.engine.session import Session
from lorchestra.experiments.budget import settle_budget
from lorchestra.experiments.build import Say, build_session
from lorchestra.methods.contract import Setting, Silent
from lorchestra.types import Task


def method_setting(
    config: RunConfig,
    task: Task,
    say: Say = lambda text: None,
    *,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Setting:
    """The setting for `methods`: the task's training and validation rows, and a configuration with nothing left open.

    What the configuration leaves open (scoring, token budget) is settled once, on a base that is loaded for it, so that
    all methods have the same.

    Args:
        config: the run's configuration.
        task: its rows; test rows are not handed on.
        say: is told, in one line each, what a person should know.
        observer: hears of every training.
        should_stop: asked between micro-batches; true ends a fit with `Interrupted`.
    """
    train = task.splits["train"]
    prompt = config.data.prompt
    # a chat template is run once for all methods: it may write the time
    live = (prompt.chat_template or prompt.system_prompt is not None) and not prompt.frame.template
    if config.data.scoring == "auto" or config.train.token_budget is None or live:
        session, resolved = build_session(config, task.name, task.labels, train, say)
        rows = TrainingRows(session.encode(train).rows, session.encode(task.splits["val"]).rows)
        budget = settle_budget(config, session, rows, say)
        config = dataclasses.replace(resolved, train=dataclasses.replace(resolved.train, token_budget=budget))
        del session

    def open_session(wanted: RunConfig) -> Session:
        return build_session(wanted, task.name, task.labels, train, say)[0]

    return Setting(
        config=config,
        open_session=open_session,
        train=train,
        val=task.splits["val"],
        labels=task.labels,
        observer=observer or Silent(),
        should_stop=should_stop,
    )
