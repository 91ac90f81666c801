"""The error responses: one class per kind, with its status; each wire format has a shape for them."""

from __future__ import annotations

import traceback

from lorchestra.errors import RequestError

Location = tuple[str | int, ...]


class HttpError(RequestError):
    """A request that is not answered.

    Args:
        message: what is wrong, and what to do.
        location: keys and indices of the value in the request's body that is to blame.

    Attributes:
        error_type: the kind of error, as both wire formats name it.
        code: a finer kind, for programs.
        retry_after_s: after how many seconds to try again; None where that would not help.
        is_final: whether clients should not retry on their own, as they do at this status.
        close: whether the connection is of no further use.
    """

    error_type = "invalid_request_error"
    code = "invalid_value"
    retry_after_s: float | None = None
    is_final = False
    close = False

    def __init__(self, message: str, location: Location = ()) -> None:
        super().__init__(message)
        self.location = location


class InvalidRequestError(HttpError):
    """A value of the body has the wrong type or is out of range."""

    http_status = 422


class InvalidJsonError(InvalidRequestError):
    """The body is not the JSON that it should be."""

    code = "json_invalid"


class StateTooLongError(InvalidRequestError):
    """The state has too many tokens."""

    code = "context_length_exceeded"


class BodyTooLargeError(HttpError):
    """The body has too many bytes."""

    http_status = 413
    code = "request_too_large"
    close = True


class UnsupportedMediaError(HttpError):
    """The body is not JSON, or carries an image."""

    http_status = 415
    code = "unsupported_media"


class UnauthenticatedError(HttpError):
    """The key is missing or wrong."""

    http_status = 401
    error_type = "authentication_error"
    code = "invalid_api_key"


class ForbiddenError(HttpError):
    """The request may come from a page of another site."""

    http_status = 403
    error_type = "permission_error"
    code = "forbidden"


class NotFoundError(HttpError):
    """There is no such route."""

    http_status = 404
    error_type = "not_found_error"
    code = "not_found"


class ModelNotFoundError(NotFoundError):
    """No run, member or base has this name."""

    code = "model_not_found"


class SlowBodyError(HttpError):
    """The body did not arrive in time."""

    http_status = 408
    error_type = "timeout_error"
    code = "body_timeout"
    close = True


class DeadlineError(HttpError):
    """There was no answer before the client's deadline."""

    http_status = 408
    error_type = "timeout_error"
    code = "deadline_exceeded"
    is_final = True


class TimeLimitError(HttpError):
    """There was no answer in the server's time limit."""

    http_status = 504
    error_type = "timeout_error"
    code = "timeout"


class TooManyWaitingError(HttpError):
    """The client has its share of the queue waiting."""

    http_status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(TooManyWaitingError):
    """The queue is full."""

    http_status = 529
    error_type = "overloaded_error"
    code = "overloaded"


class DrainingError(HttpError):
    """The server finishes what it has, and takes nothing new."""

    http_status = 503
    error_type = "overloaded_error"
    code = "draining"
    retry_after_s = 5.0
    close = True


class CorrectionsFullError(HttpError):
    """The file of corrections has its largest size."""

    http_status = 507
    error_type = "server_error"
    code = "corrections_full"


class EngineError(HttpError):
    """Computing the answers failed, which is not the request's fault."""

    http_status = 500
    error_type = "server_error"
    code = "server_error"


def without_texts(error: BaseException) -> str:
    """An error for the log: kind and location, but not its message, which may quote a request."""
    return f"{type(error).__name__}\n{''.join(traceback.format_tb(error.__traceback__))}"
