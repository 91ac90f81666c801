"""Allowed outcomes of a fuzzed case: a result, or exactly one LorchestraError with exit code 2.

Everything else is a violation: another exception, a warning, a message with control characters, a half-written file, a
directory changed by a command that failed, a loaded pickle, or a case that takes too long.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from lorchestra.errors import LorchestraError

LIMIT_S = 60.0
"""Time limit of a case, in seconds."""
CANARY = b"a pickle was loaded"
_LONGEST_MESSAGE = 2500


class Work(Protocol):
    """A prepared case: called once, it returns or raises. If it fails, `folder` must be unchanged."""

    def __call__(self) -> object: ...


class Surface(Protocol):
    """One kind of input, which prepares random cases."""

    name: str
    kinds: Sequence[str]

    def prepare(self, kind: str, draw: random.Random, folder: Path) -> Work: ...


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case: `ended` is "result", the error's class, or "violation"; `text` is its message."""

    surface: str
    kind: str
    case: int
    ended: str
    text: str


class ViolationError(AssertionError):
    """A property does not hold."""


class RefusedError(LorchestraError):
    """A command ended with exit code 2 and one message."""


class _TooLong(BaseException):
    """Not an Exception, so that no handler catches it."""


_pickles: list[str] = []
_armed = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _armed and event == "pickle.find_class":
        _pickles.append(f"{arguments[0]}.{arguments[1]}")


sys.addaudithook(_audit)


@contextmanager
def _watched(limit_s: float) -> Iterator[None]:
    """Record every class that an unpickler looks up, and raise if the block takes too long."""
    global _armed

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    _pickles.clear()
    _armed = True
    try:
        yield
    finally:
        _armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(work: Work, folder: Path, *, limit_s: float = LIMIT_S, keeps: bool = True) -> tuple[str, str]:
    """Run a case; returns the outcome and its message.

    Args:
        work: the case.
        folder: everything it may read and write.
        limit_s: its time limit.
        keeps: whether `folder` must be unchanged if the case fails.
    """
    before = snapshot(folder)
    started = time.process_time()
    try:
        with _watched(limit_s), warnings.catch_warnings():
            warnings.simplefilter("error")
            # peft 0.21 uses a deprecated name of transformers 5.24
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            work()
        ended, text = "result", ""
    except LorchestraError as error:
        ended, text = type(error).__name__, str(error)
        if error.exit_code != 2:
            return "violation", f"exit code {error.exit_code}: {text}"
        if not text.strip() or len(text) > _LONGEST_MESSAGE or not text.isprintable():
            return "violation", f"a message of {len(text)} characters that no terminal should get: {text[:300]!r}"
    except _TooLong as error:
        spent = time.process_time() - started
        return "violation", f"not done after {limit_s} s, of which it computed {spent:.1f} s ({_origin(error)})"
    except BaseException as error:
        return "violation", " ".join(f"{type(error).__name__}: {error} ({_origin(error)})".split())[:400]
    if _pickles:
        return "violation", f"a pickle was loaded: {_pickles[0]}"
    after = snapshot(folder)
    if any(data == CANARY for data in after.values()):
        return "violation", "a pickle was loaded"
    left = [name for name in after if name.endswith(".tmp")]
    if left:
        return "violation", f"left half-written: {left[0]}"
    if ended != "result" and keeps and after != before:
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        return "violation", f"failed ({text[:200]}) and yet changed {changed[0]}"
    return ended, text


def _origin(error: BaseException) -> str:
    """Where it was raised: the innermost lines of the package, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "lorchestra" in frame.filename][-2:]
    shown = ours if ours and ours[-1] is frames[-1] else [*ours, frames[-1]]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in shown)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """The bytes of every file below a directory by relative path; None for other entries."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run_case(surface: Surface, seed: int, case: int, *, limit_s: float = LIMIT_S) -> Outcome:
    """Prepare and judge one case, determined by the seed, the surface's name and the case's number."""
    draw = random.Random(f"{seed}/{surface.name}/{case}")
    kind = surface.kinds[case % len(surface.kinds)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        work = surface.prepare(kind, draw, folder)
        ended, text = judge(work, folder, limit_s=limit_s, keeps=getattr(work, "keeps", True))
        return Outcome(surface.name, kind, case, ended, text.replace(name, "."))


def run_cases(
    surface: Surface, seed: int, cases: Sequence[int], on_outcome: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Run several cases."""
    outcomes = []
    for case in cases:
        outcomes.append(run_case(surface, seed, case))
        on_outcome(outcomes[-1])
    return outcomes
