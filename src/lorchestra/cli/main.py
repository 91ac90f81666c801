"""The command line: finds the command, runs it, and turns what goes wrong into a text and an exit code.

Exit codes: 0 done; 1 training or a check failed; 2 bad input or configuration; 3 internal error; 130 interrupted.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Sequence

from lorchestra.cli.streams import Stdout, complain, prepared_streams
from lorchestra.errors import LorchestraError, did_you_mean
from lorchestra.store.disk import explained_paths

COMMANDS = {
    "demo": "fine-tune, evaluate and use an ensemble on real data, end to end, in some minutes",
    "train": "fine-tune an ensemble of LoRA adapters on your own data or a task by name",
    "plan": "memory and time of a training, before it is run",
    "sweep": "train and compare a grid of settings, in as few packed passes as possible",
    "compare": "compare methods at equal budget: one LoRA, the ensemble, controls of equal compute, ...",
    "paper": "train and draw figures of the paper and its ablations, on your base and data",
    "evaluate": "measure accuracy, NLL, calibration and OOD detection of a trained ensemble",
    "tasks": "list what is known by name, where its rows come from here, and what they look like",
    "predict": "answer questions or label texts, with uncertainty, one JSON line a row",
    "report": "write one HTML page about a finished run, or compare several",
    "import": "make a run of LoRA adapters that PEFT saved",
    "export": "write a run's members as plain PEFT folders or merged models, with a model card",
}

_HELP = """\
usage: lorchestra COMMAND [ARGUMENTS ...]

Fine-tune an orchestra of LoRA adapters on one frozen LLM, in one run, and get
answers that know when they don't know.

commands:
{commands}

lorchestra COMMAND --help explains a command. Results go to stdout, progress to
stderr. A first try, with nothing of your own: lorchestra demo

options:
  --version   print the version
  --debug     show the traceback of errors (also: LORCHESTRA_DEBUG=1)
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
    # where the reader of our output is gone (as in `| head`), there is nothing to say, and nobody to say it to
    if stdout.fault is not None and not stdout.is_broken_pipe:
        complain(f"error: stdout cannot be written: {stdout.fault.strerror}; send the output elsewhere")
        code = code or 2
    return code


def _guarded(arguments: list[str], debug: bool, stdout: Stdout) -> int:
    """Run a command, and turn what goes wrong into a text and an exit code; faults of stdout are raised."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except LorchestraError as error:
        if debug:
            raise
        complain(f"error: {error}")
        return error.exit_code
    except Exception as error:
        if debug or stdout.fault is not None:
            raise
        complain(f"internal error: {type(error).__name__}: {error}")
        complain("this is a fault of lorchestra, not yours; --debug shows where it happened")
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
        complain(f"error: {command!r} is no command; {hint} (lorchestra --help)")
        return 2
    _keep_bars_to_terminals()
    module = f"{command}_" if keyword.iskeyword(command) else command
    try:
        with explained_paths():
            return int(importlib.import_module(f"lorchestra.cli.{module}").run(rest))
    finally:
        if (output := sys.modules.get("lorchestra.cli.output")) is not None:
            output.stop_logging()


def _keep_bars_to_terminals() -> None:
    """Switch off tqdm's bars where stderr is a file or a pipe; libraries draw them there, too, one piece a line.

    tqdm reads the variable when it is first imported.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


if __name__ == "__main__":
    sys.exit(main())
