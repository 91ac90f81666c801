"""The limits of the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class ServeLimits:
    """What a request may have, how much may wait, and for how long.

    Raises:
        ConfigError: a limit is not positive.
    """

    max_batch_tokens: int | None = None
    """Most tokens of one batch, counted once per member. What arrives while a batch is computed waits for it, so fewer
    tokens answer small requests sooner, and more answer many requests faster. Default: 2048 on a CPU, 65536 on CUDA."""
    max_body_bytes: int = 4 * 2**20
    """Most bytes of a request's body."""
    max_json_depth: int = 64
    """Most levels of nested objects and arrays in a body."""
    max_state_tokens: int = 8192
    """Most tokens of a state (in a run of texts with labels: of the prompt)."""
    max_questions: int = 400
    """Most questions of a request."""
    max_options: int = 20_000
    """Most options and levels of a request's questions together."""
    max_requests: int = 256
    """Most requests at a time; more get status 529."""
    max_queue_tokens: int = 4_000_000
    """Most tokens of all open requests; more get status 529. A client that has half of them waiting gets 429."""
    timeout: float = 120.0
    """Seconds after which a request without an answer gets status 504."""
    body_timeout: float = 10.0
    """Seconds in which a request's body must have arrived; twice that for its headers."""

    def __post_init__(self) -> None:
        """Check that every limit is positive."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ConfigError(f"--{field.name.replace('_', '-')} is {value}; it must be positive")
