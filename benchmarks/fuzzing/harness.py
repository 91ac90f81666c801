"""What a fuzzed case must end in: a result, or exactly one LorchestraError with exit code 2.

Anything else is a violation: another exception, a warning, a message that no terminal should be sent, a file half
written, a directory changed by a command that failed, a pickle loaded, or a case that takes too long.
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
"""Seconds a case may take."""
CANARY = b"a pickle was loaded"
_LONGEST_MESSAGE = 2500


class Work(Protocol):
    """One case, prepared: called once, ends in a result or an error. `folder` must be as before where it fails."""

    def __call__(self) -> object: ...


class Surface(Protocol):
    """One kind of input: it prepares cases from a seeded source of randomness."""

    name: str
    kinds: Sequence[str]

    def prepare(self, kind: str, draw: random.Random, folder: Path) -> Work: ...


@dataclass(frozen=True)
class Outcome:
    """How a case ended: `ended` is "result", the error's class, or "violation"; `text` its message."""

    surface: str
    kind: str
    case: int
    ended: str
    text: str


class ViolationError(AssertionError):
    """A property that must hold did not."""


class RefusedError(LorchestraError):
    """A command ended with exit code 2 and one message."""


class _TooLong(BaseException):
    """Not an Exception: nobody may catch it on the way up."""


_pickles: list[str] = []
_armed = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _armed and event == "pickle.find_class":
        _pickles.append(f"{arguments[0]}.{arguments[1]}")


sys.addaudithook(_audit)


@contextmanager
def _watched(limit_s: float) -> Iterator[None]:
    """Notes every class that an unpickler looks up, and raises where the block takes too long."""
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
    """Run a case and say how it ended.

    Args:
        work: the case.
        folder: all that it may read and write.
        limit_s: seconds it may take.
        keeps: whether `folder` must be as before where the case fails.
    """
    before = snapshot(folder)
    started = time.process_time()
    try:
        with _watched(limit_s), warnings.catch_warnings():
            warnings.simplefilter("error")
            # peft 0.21 asks transformers 5.24 for a name on its way out
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            work()
        ended, text = "result", ""
    except LorchestraError as error:
        ended, text = type(error).__name__, str(error)
        if error.exit_code != 2:
            return "violation", f"exit code {error.exit_code}: {text}"
        if not text.strip() or len(text) > _LONGEST_MESSAGE or not text.isprintable():
            return "violation", f"a message of {len(text)} characters that no terminal should be sent: {text[:300]!r}"
    except _TooLong as error:
        spent = time.process_time() - started
        return "violation", f"not done after {limit_s} s, of which it computed {spent:.1f} s ({_place(error)})"
    except BaseException as error:
        return "violation", " ".join(f"{type(error).__name__}: {error} ({_place(error)})".split())[:400]
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


def _place(error: BaseException) -> str:
    """Where it was raised: the innermost lines of the package, and the very innermost."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "lorchestra" in frame.filename][-2:]
    shown = own if own and own[-1] is frames[-1] else [*own, frames[-1]]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in shown)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """The bytes of every file below a directory by relative path; None for what is no regular file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def run_case(surface: Surface, seed: int, case: int, *, limit_s: float = LIMIT_S) -> Outcome:
    """Prepare and judge one case; the seed, the surface's name and the case's number decide all of it."""
    draw = random.Random(f"{seed}/{surface.name}/{case}")
    kind = surface.kinds[case % len(surface.kinds)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        work = surface.prepare(kind, draw, folder)
        ended, text = judge(work, folder, limit_s=limit_s, keeps=getattr(work, "keeps", True))
        return Outcome(surface.name, kind, case, ended, text.replace(name, "."))


def run_cases(
    surface: Surface, seed: int, cases: Sequence[int], tell: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """All of these cases."""
    outcomes = []
    for case in cases:
        outcomes.append(run_case(surface, seed, case))
        tell(outcomes[-1])
    return outcomes
