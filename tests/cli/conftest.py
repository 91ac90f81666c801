"""Fixtures of the command-line tests."""

from __future__ import annotations

import pytest

from lorchestra.cli import main as cli
from lorchestra.cli import predict as command_module


@pytest.fixture
def lorchestra(capsys):
    """Runs a command in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # tyro's way of refusing arguments
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def interrupt(monkeypatch):
    """Interrupts `predict`, as Ctrl-C would, after some chunks, or never."""

    def after(chunks):
        left = [chunks]

        def write(self, *arguments):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return original(self, *arguments)

        monkeypatch.setattr(command_module.Prediction, "_write", write)

    original = command_module.Prediction._write
    return after
