"""The command line: selects and runs a command, and maps exceptions to messages and exit codes.

Exit codes: 0 success; 1 training or a check failed; 2 bad input or configuration; 3 internal error; 130 interrupted.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Sequence

from lorchestra.cli.processes import check_processes, is_first, only_first_prints
from lorchestra.cli.streams import Stdout, prepared_streams, print_stderr
from lorchestra.errors import LorchestraError, ReportedError, did_you_mean
from lorchestra.store.disk import explained_paths

COMMANDS = {
    "demo": "train, evaluate and use an ensemble on real data, end to end, in a few minutes",
    "train": "train an ensemble of LoRA adapters on your data or on a named task",
    "plan": "estimate the memory and time of a training before running it",
    "sweep": "train and compare a grid of settings in as few packed passes as possible",
    "compare": "compare methods at equal budget: one LoRA, the ensemble, equal-compute controls",
    "paper": "reproduce figures and ablations of the paper, on your base and data",
    "evaluate": "measure accuracy, NLL, calibration and OOD detection of a trained ensemble",
    "distill": "teach one LoRA what an ensemble knows, its uncertainty included",
    "calibrate": "certify which answers can be automated at a guaranteed error",
    "monitor": "alarm if new rows are unlike those that a guarantee was made on",
    "tasks": "list the named tasks, where their rows come from, and what they look like",
    "predict": "answer questions or label texts, with uncertainty, one JSON line per row",
    "serve": "answer typed questions over HTTP, in the formats of two APIs",
    "report": "write one HTML page about a finished run, or compare several runs",
    "import": "make a run from LoRA adapters saved by PEFT",
    "export": "write a run's members as PEFT folders or merged models, with a model card",
}

_HELP = """\
usage: lorchestra COMMAND [ARGUMENTS ...]

Train an orchestra of LoRA adapters on one frozen LLM, in one run, and get
answers that know when they don't know.

commands:
{commands}

lorchestra COMMAND --help explains a command. Results go to stdout, progress to
stderr. To try it without any data: lorchestra demo

options:
  --version   print the version
  --debug     show tracebacks of errors (also: LORCHESTRA_DEBUG=1)
"""


def help_text() -> str:
    """What `lorchestra --help` prints."""
    return _HELP.format(commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("LORCHESTRA_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    code = 0
    with prepared_streams() as stdout:
        try:
            try:
                code = _guarded(arguments, debug, stdout)
            finally:
                stdout.flush()
        except OSError:
            if stdout.fault is None:
                raise
    # a closed pipe (`| head`) is not an error
    if stdout.fault is not None and not stdout.is_broken_pipe:
        print_stderr(f"error: stdout cannot be written: {stdout.fault.strerror}; send the output elsewhere")
        code = code or 2
    return code


def _guarded(arguments: list[str], debug: bool, stdout: Stdout) -> int:
    """Run a command and map its exceptions to a message and an exit code; errors of stdout are raised."""
    try:
        with only_first_prints():
            return _run(arguments)
    except KeyboardInterrupt:
        if is_first():
            print_stderr("interrupted")
        return 130
    except LorchestraError as error:
        if debug:
            raise
        if not isinstance(error, ReportedError):
            print_stderr(f"error: {error}")
        return error.exit_code
    except Exception as error:
        if debug or stdout.fault is not None:
            raise
        print_stderr(f"internal error: {type(error).__name__}: {error}")
        print_stderr("this is a bug in lorchestra; --debug shows the traceback")
        return 3


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"lorchestra {version('lorchestra')}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print_stderr(f"error: {command!r} is not a command; {hint} (lorchestra --help)")
        return 2
    check_processes(command)
    _keep_bars_to_terminals()
    module = f"{command}_" if keyword.iskeyword(command) else command
    try:
        with explained_paths():
            return int(importlib.import_module(f"lorchestra.cli.{module}").run(rest))
    finally:
        if (output := sys.modules.get("lorchestra.cli.output")) is not None:
            output.stop_logging()


def _keep_bars_to_terminals() -> None:
    """Disable tqdm if stderr is a file or a pipe: libraries would print their bars there, one line per update.

    tqdm reads the variable on import.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    sys.exit(main())
