"""`lorchestra serve`: answer typed questions over HTTP."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.config.serve import ServeLimits
from lorchestra.errors import ConfigError

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class ServeArguments:
    """Answer typed questions over HTTP, as TypeSafe's API (POST /v1/systemone) and OpenAI's (POST /v1/decisions) do.

    A question is a choice, a predicate (noul) or a score. Questions that a run was trained on get its calibrated
    probabilities and certified decisions; any other is answered without them. A request names its model: RUN (its
    directory's name), RUN/member_00, RUN/base, or jev-latest for the first run.

    At SIGTERM or Ctrl-C the server answers what it has taken, refuses what is new, and exits. There is a guide in
    docs/serving.md.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    host: str = "127.0.0.1"
    """Address to listen on. Other machines reach the server on 0.0.0.0, which needs keys."""
    port: int = 8000
    """Port to listen on; 0 for any that is free, which is printed."""
    api_keys: str | None = None
    """File with the keys of those who may ask: one per line, and behind it a name for logs and metrics if you like.
    Without it, the environment variable LORCHESTRA_API_KEYS; without both, no key is needed."""
    allow_open: bool = False
    """Listen on an address that other machines reach although no key is needed."""
    base: str | None = None
    """The runs' base, if it has moved: hub id, directory or .gguf file with the same weights."""
    raw: bool = False
    """Answer with the mixture as it is, without the runs' calibration and decisions."""
    state_cache_mb: int = 256
    """Memory for the states of earlier requests, in MB per run: further questions about one cost their tokens only. A
    state is reused for the same key (or address) and prompt_cache_key only. 0 for none."""
    share_states: bool = False
    """Reuse states for every key and prompt_cache_key: whoever asks can then measure, by the time of an answer and its
    cached_tokens, that somebody asked about the same state before."""
    corrections: str | None = None
    """File to which the page at / appends the right answers that people give, one JSON line each, with the state's
    text; calibrate and monitor read it with --data. Without it, the page offers no corrections."""
    show_training_rows: bool = False
    """Show, next to answers on the page, the training rows that are most similar to the state, with their labels."""
    log_texts: bool = False
    """Log the states and questions of requests. Without this, logs hold no texts."""
    limits: Annotated[ServeLimits, tyro.conf.arg(name="")] = field(default_factory=ServeLimits)
    """Limits of requests."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(ServeArguments, arguments, "serve")
    for name in parsed.runs:
        check_run_argument(name, "serve")
    if parsed.state_cache_mb < 0:
        raise ConfigError(f"--state-cache-mb is {parsed.state_cache_mb}; it must not be negative")
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'lorchestra[serve]'")

    from lorchestra.cli.output import messages
    from lorchestra.server.app import create_app
    from lorchestra.server.keys import VARIABLE, Keys
    from lorchestra.server.lifecycle import serve
    from lorchestra.server.registry import ServedRun
    from lorchestra.server.service import ServiceOptions

    keys = Keys.load(parsed.api_keys)
    if keys.is_open and not parsed.allow_open and not _is_loopback(parsed.host):
        raise ConfigError(
            f"--host {parsed.host}: other machines could ask without a key; give --api-keys FILE or {VARIABLE}, or"
            " --allow-open"
        )
    messages()
    options = ServiceOptions(parsed.limits, keys, parsed.log_texts, parsed.share_states)
    runs = [
        ServedRun.load(
            name,
            base=parsed.base,
            raw=parsed.raw,
            cache_bytes=parsed.state_cache_mb * 2**20,
            show_training_rows=parsed.show_training_rows,
        )
        for name in parsed.runs
    ]
    app = create_app(runs, options, corrections=parsed.corrections)
    serve(app, parsed.host, parsed.port)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
