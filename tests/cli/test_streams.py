"""Standard streams that are full, closed, without a reader, or of another encoding: an error or the right bytes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.table import Table
from rich.text import Text

from lorchestra.cli import main as cli
from lorchestra.cli import output
from lorchestra.cli.streams import UnfailingStderr

HOSTILE = "a\x1b]0;owned\x07\u009b31m\u202eb\u200bc\u00a0d\ud800"
RAW = "\x1b\x07\u009b\u202e\u200b\ud800"

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
needs_shell = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def shell(request, tmp_path):
    """Runs a shell line in which `lorchestra` is the command; returns code, stdout and stderr as bytes."""
    tool = tmp_path / "lorchestra"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lorchestra "$@"\n')
    tool.chmod(0o755)

    def run(line, **environment):
        variables = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONUNBUFFERED": request.param}
        done = subprocess.run(["bash", "-c", line], capture_output=True, env=variables | environment, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@needs_full
@needs_shell
def test_a_stdout_that_cannot_be_written_is_an_error(shell):
    for line in (
        "lorchestra --help > /dev/full",
        "lorchestra tasks > /dev/full",
        "lorchestra tasks --json > /dev/full",
    ):
        code, _, err = shell(line)
        assert code == 2
        assert err == b"error: stdout cannot be written: No space left on device; send the output elsewhere\n"
    code, _, err = shell("lorchestra train --help >&-")
    assert (code, err) == (2, b"error: stdout cannot be written: it is closed; send the output elsewhere\n")


@needs_full
@needs_shell
def test_errors_of_stderr_are_ignored(shell):
    for line in ("lorchestra trian 2> /dev/full", "lorchestra trian 2>&-", "lorchestra trian 2> >(true)"):
        assert shell(line) == (2, b"", b"")


@needs_shell
def test_a_closed_pipe_ends_the_command_quietly(shell):
    for command in ("tasks", "tasks --json", "train --help"):
        code, out, err = shell(f"set -o pipefail; lorchestra {command} | head -1")
        assert (code, err) == (0, b"")
        assert out.count(b"\n") == 1


@needs_shell
@pytest.mark.parametrize("encoding", ["cp1252:strict", "ascii"])
def test_pipes_get_utf_8(shell, encoding):
    code, out, _ = shell("lorchestra tasks --json && lorchestra tasks", PYTHONIOENCODING=encoding, LANG="C")
    assert code == 0
    out.decode("utf-8")


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def as_terminal(monkeypatch, encoding):
    terminal = Terminal(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


def test_a_terminal_gets_its_encoding_and_escapes(monkeypatch):
    def show(arguments):
        print("snowman \u2603")
        output.print_json({"text": "\u2603\u00e9\U0001f600"})
        return 0

    monkeypatch.setattr("lorchestra.cli.tasks.run", show)
    terminal = as_terminal(monkeypatch, "cp1252")
    assert cli.main(["tasks"]) == 0
    terminal.flush()
    text, line = terminal.buffer.getvalue().decode("cp1252").splitlines()
    assert text == "snowman \\u2603"
    assert json.loads(line) == {"text": "\u2603\u00e9\U0001f600"}


def test_messages_bypass_the_redirection_of_a_live_view(monkeypatch):
    """Rich replaces stderr by a proxy that prints to the console: written to that, a text would come back forever."""
    terminal = Terminal(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=io.StringIO()), terminal))
    stderr = UnfailingStderr()
    stderr.write("one\ntwo\n")
    stderr.flush()
    assert terminal.buffer.getvalue() == b"one\ntwo\n"
    assert (stderr.isatty(), stderr.encoding) == (True, "utf-8")


@pytest.mark.parametrize("stream", ["out", "err"])
def test_untrusted_text_cannot_control_the_terminal(monkeypatch, capsys, stream):
    monkeypatch.setenv("TERM", "xterm-256color")
    console = output.results() if stream == "out" else output.messages()
    output.printer(console)(HOSTILE)
    table = Table(title=Text(HOSTILE))
    table.add_column(HOSTILE)
    table.add_row(Text(HOSTILE), style="bold")
    console.print(table)
    console.print(HOSTILE, markup=False)
    shown = getattr(capsys.readouterr(), stream)
    assert not set(RAW) & set(shown)
    assert "\\x9b31m\\u202eb\\u200bc\u00a0d\\ud800" in shown


def test_json_has_the_same_values_and_no_raw_characters(capsys):
    output.print_json({HOSTILE: [HOSTILE, "\U000e0001\x7f"], "n": float("nan")})
    line = capsys.readouterr().out
    assert not set(RAW + "\x7f\U000e0001") & set(line)
    assert json.loads(line) == {HOSTILE: [HOSTILE, "\U000e0001\x7f"], "n": None}


def test_other_os_errors_are_not_attributed_to_stdout(lorchestra, monkeypatch):
    def broken(arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorchestra.cli.predict.run", broken)
    code, _, err = lorchestra("predict")
    assert code == 3
    assert "internal error: OSError" in err
