"""Live tables: with many members or points they fit the terminal, and they are drawn on a real one."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from lorchestra.cli.progress import SweepProgress, TrainingProgress
from lorchestra.config.mappings import to_yaml
from lorchestra.training.callbacks import StepReport
from lorchestra.training.checkpoint import MemberState, TrainState

MEMBERS = 150
SIZES = [(80, 24), (120, 50), (40, 24), (60, 10), (20, 4)]


@pytest.fixture
def terminal(monkeypatch):
    """Makes a console that believes to write to a terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")

    def make(width, height):
        return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)

    return make


def shown(view, console):
    """The lines of a view as the console renders them."""
    return ["".join(segment.text for segment in line).rstrip() for line in console.render_lines(view, pad=False)]


def report(step, members=MEMBERS):
    values = [0.5 + 0.001 * m for m in range(members)]
    return StepReport(step, 0, values, {}, values, values, tokens=1000, seconds=0.5)


def evaluation(step, members=MEMBERS):
    values = [0.6 + 0.001 * m for m in range(members)]
    return {"step": step, "epoch": step, "val_nll": values, "val_accuracy": values}


def state_of(members=MEMBERS):
    return TrainState(members=[MemberState() for _ in range(members)], num_updates=[0] * members)


def train(progress, state, after_step):
    """Report a training of two steps, with an evaluation after each; some members stop and one fails in the second."""
    trainer = SimpleNamespace(model=SimpleNamespace(num_members=len(state.members)), state=state, num_steps=2)
    progress.on_train_begin(trainer)
    after_step()
    for step in (1, 2):
        state.step, state.train_s = step, 0.5 * step
        progress.on_step(report(step, len(state.members)), state)
        after_step()
        if step == 2:
            state.fail(1, 2, "diverged")
            for member in state.members[2:42]:
                member.status = "stopped"
        entry = evaluation(step, len(state.members))
        state.history.append(entry)
        progress.on_evaluation(entry, state)
        after_step()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_training_of_150_members_fits_the_terminal(terminal, width, height):
    """With 100 members or more, the table failed with an IndexError before the first evaluation."""
    console, state, views = terminal(width, height), state_of(), []
    with TrainingProgress(console) as progress:
        train(progress, state, lambda: views.append(shown(progress._live.renderable, console)))
    assert len(views) == 5
    for view in views if height > 4 else ():
        assert len(view) < height
        assert "of 150 members shown" in " ".join(view)
    if width >= 80:
        assert views[-1][-2].endswith(" of 150 members shown: 109 running, 1 failed, 40 stopped")
        assert views[-1][-1].startswith("step 2 of 2, 2,000 tokens/s")
        first_cells = [line.split()[0] for line in views[-1][1:-2]]
        assert first_cells[:3] == ["0", "42", "43"]  # running ones first
        assert "0.642" in views[-1][2]
    assert "member 1 failed: diverged" in console.file.getvalue()


def test_few_members_are_all_shown(terminal):
    console, state, views = terminal(80, 24), state_of(3), []
    with TrainingProgress(console) as progress:
        train(progress, state, lambda: views.append(shown(progress._live.renderable, console)))
    assert [len(view) for view in views] == [5] * 5
    assert "shown" not in " ".join(views[-1])


@pytest.mark.parametrize(
    ("members", "line"),
    [
        (3, "epoch 1: validation NLL by member 0.600 0.601 0.602"),
        (150, "epoch 1: validation NLL of 150 members: mean 0.674, lowest 0.600, highest 0.749"),
    ],
)
def test_plain_lines_name_few_members_and_summarize_many(members, line):
    console = Console(file=io.StringIO(), width=80)
    with TrainingProgress(console) as progress:
        train(progress, state_of(members), lambda: None)
    assert line in console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES[:-1])
def test_a_sweep_of_150_points_fits_the_terminal(terminal, width, height):
    points = [
        SimpleNamespace(name=f"lr={n}", config=SimpleNamespace(adapt=SimpleNamespace(members=1)))
        for n in range(MEMBERS)
    ]
    console = terminal(width, height)
    names = [point.name for point in points]
    with SweepProgress(console, points) as progress:
        progress.on_status(names[:100], "training")
        train(progress, state_of(100), lambda: None)
        progress.on_status(names[:100], "finished")
        progress.on_status(names[100:], "training")
        view = shown(progress._live.renderable, console)
    assert len(view) < height
    text = " ".join(" ".join(view).split())
    assert "100 of 150 points finished. training: 50 points" in text
    assert "lr=100" in text
    assert "lr=99 " not in text


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_training_of_150_members_on_a_real_terminal(run_config, texts_csv, tmp_path):
    """Rich redirects stderr while a table is live; a console that wrote to the redirected stream hung."""
    import fcntl
    import termios

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(run_config(texts_csv(), adapt={"members": MEMBERS})))
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "lorchestra", "train", str(recipe), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [*command, "--skip-evaluation"], stdout=subprocess.PIPE, stderr=terminal, env=os.environ | {"TERM": "xterm"}
    )
    os.close(terminal)
    timer = threading.Timer(300, process.kill)
    timer.start()
    drawn = b""
    try:
        while data := os.read(master, 65536):
            drawn += data
    except OSError:  # how Linux reports that the other end is closed
        pass
    finally:
        out, _ = process.communicate()
        timer.cancel()
        os.close(master)
    text = drawn.decode()
    assert process.returncode == 0, text
    assert out.decode() == f"{tmp_path / 'run'}\n"
    views = re.split(r"(?:\x1b\[1A\x1b\[2K)+", text)
    assert len(views) > 3
    assert max(view.count("\n") for view in views[1:-1]) < 24
    assert "20 of 150 members shown: 150 running" in text
    assert "20 of 150 members shown: 150 finished" in views[-1]
    assert "trained ensemble" in views[-1]
