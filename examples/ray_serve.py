"""The server's app under Ray Serve: replicas of a run, each with its queue and worker thread.

    serve run examples.ray_serve:app

The run's directory is in the environment variable RUN. Ray Serve (`pip install 'ray[serve]'`) is not installed where
lorchestra's tests run: there this program is only compiled, never run.
"""

from __future__ import annotations

import os

from ray import serve

from lorchestra.server.app import create_app
from lorchestra.server.registry import ServedRun


def build_app():
    """Called in each replica: a model and its threads cannot be sent from process to process."""
    return create_app([ServedRun.load(os.environ["RUN"])])


@serve.deployment(num_replicas=2, max_ongoing_requests=256)
@serve.ingress(build_app)
class Decisions:
    """Forwards requests to the app."""


app = Decisions.bind()
