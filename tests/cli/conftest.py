"""Fixtures of the command-line tests."""

from __future__ import annotations

import pytest

from lorchestra.cli import main as cli


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
