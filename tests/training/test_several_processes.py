"""Members split over processes are trained as by one process; here threads stand in for the processes."""

import dataclasses

import pytest
import torch
from stop_after import StopAfter
from thread_group import in_threads, thread_groups

import lorchestra.inference.trunk
from lorchestra.errors import CheckpointError, Interrupted
from lorchestra.inference.trunk import TrunkFiles
from lorchestra.training.callbacks import Callback
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.joint import JointStop, led

SETTINGS = {
    "dropout, KL, clipping, patience": {
        "kind": "texts",
        "dropout": 0.3,
        "regularize": {"weight_decay_b": 5.0, "kl_beta": 0.3},
        "train": {"clip_norm": 0.5, "epochs": 3, "batch_size": 5, "patience": 1},
    },
    "early stopping": {"train": {"lr": 0.04, "epochs": 6, "patience": 1, "schedule": "constant"}},
    "trunk": {"depth": 3, "layers": "last:1", "dropout": 0.2, "kind": "texts", "regularize": {"kl_beta": 0.3}},
    "trunk, folds": {"depth": 3, "layers": "last:1", "order": "folds"},
    "heads, bootstrap": {"kind": "heads", "depth": 3, "layers": "last:1", "order": "bootstrap"},
    "PiSSA": {
        **{"kind": "texts", "init_lora_weights": "pissa", "dropout": 0.2},
        "regularize": {"weight_decay_ba": 0.1},
    },
}


@pytest.fixture
def make_group(make_trainer):
    """Builds a group's trainers, one per process."""

    def build(size, **settings):
        groups = thread_groups(size)
        return groups, [make_trainer(group=group, **settings) for group in groups]

    return build


def trained(groups, trainers):
    """Run the trainers of a group to their ends."""
    for state in in_threads(groups, lambda rank: trainers[rank].run(lambda: None)):
        assert isinstance(state, TrainState), state
    return trainers


def joined(trainers, name):
    """A checkpoint's tensor of all members."""
    return torch.cat([trainer.tensors()[name] for trainer in trainers])


def untimed(state):
    """A state without the seconds."""
    return dataclasses.replace(state, train_s=0.0).to_json()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_members_equal_those_of_one_process(make_trainer, make_group, train, settings, size):
    """Parameters, best copies, moments, and the state of all members, which every process has."""
    alone = train(make_trainer(**settings))
    trainers = trained(*make_group(size, **settings))
    assert [len(trainer.block) for trainer in trainers] == ([1, 2] if size == 2 else [1, 1, 1])
    for name, expected in alone.tensors().items():
        torch.testing.assert_close(joined(trainers, name), expected, rtol=0, atol=1e-9)
    moved = alone.model.adapters.values - make_trainer(**settings).model.adapters.values
    assert moved.abs().amax(dim=1).min() > 0.01
    for trainer in trainers:
        assert untimed(trainer.state) == untimed(trainers[0].state)
        ours, theirs = trainer.state, alone.state
        assert (ours.step, ours.tokens, ours.num_updates) == (theirs.step, theirs.tokens, theirs.num_updates)
        for mine, other in zip(ours.members, theirs.members, strict=True):
            assert (mine.status, mine.best_step, mine.waited) == (other.status, other.best_step, other.waited)
            assert mine.best_nll == pytest.approx(other.best_nll, abs=1e-9)
        for mine, other in zip(ours.history, theirs.history, strict=True):
            for name in ("val_nll", "val_scaled_nll", "val_spread", "train_nll"):
                assert mine[name] == pytest.approx(other[name], abs=1e-9)
        for mine, other in zip(trainer.callback.reports, alone.callback.reports, strict=True):
            assert mine.loss == pytest.approx(other.loss, abs=1e-9)
            assert mine.grad_norm == pytest.approx(other.grad_norm, abs=1e-8)
            assert (mine.lr, mine.tokens, mine.epoch) == (other.lr, other.tokens, other.epoch)
            assert mine.penalties.keys() == other.penalties.keys()


@pytest.mark.parametrize("size", [2, 3])
def test_members_have_the_same_bits_if_the_micro_batches_are_the_same(make_trainer, make_group, train, size):
    """Here each row is one; what a member shares one with depends on the number of processes, and so does rounding."""
    settings = SETTINGS["dropout, KL, clipping, patience"] | {"dtype": torch.float32, "members": 5}
    settings["train"] = settings["train"] | {"token_budget": 1}
    alone = train(make_trainer(**settings))
    trainers = trained(*make_group(size, **settings))
    for name, expected in alone.tensors().items():
        assert torch.equal(joined(trainers, name), expected)


def test_a_process_whose_members_have_all_stopped_follows_the_others(make_trainer, make_group, train):
    settings = {"depth": 3, "layers": "last:1", "regularize": {"weight_decay_b": 1.0}}

    def stop(report, state):
        if report.step == 2:
            state.members[0].status = "stopped"

    alone = make_trainer(**settings)
    groups, trainers = make_group(2, **settings)
    assert [list(trainer.block) for trainer in trainers] == [[0], [1, 2]]
    for trainer in (alone, *trainers):
        trainer.callback.on_each_step = stop
    train(alone)
    trained(groups, trainers)
    torch.testing.assert_close(joined(trainers, "values"), alone.model.adapters.values, rtol=0, atol=1e-9)
    for trainer in trainers:
        assert trainer.state.num_updates == alone.state.num_updates == [2, 6, 6]
        assert [report.loss[0] is None for report in trainer.callback.reports] == [False] * 2 + [True] * 4
        assert all(entry["val_nll"][0] is None for entry in trainer.state.history)


def with_common_tokens(rows, number, kind):
    """The rows with common first tokens: all with the same ones, or a state for each two."""
    if kind == "ragged":
        return rows
    started = []
    for index, row in enumerate(rows):
        first = tuple((token + index // 2 if kind == "states" else token) for token in range(number))
        state = number if kind == "states" else 0
        started.append(dataclasses.replace(row, prefix=first + row.prefix, state=state))
    return started


@pytest.mark.parametrize("common", ["ragged", "shared prefix", "states"])
def test_the_trunk_is_computed_once_in_turns_with_the_bits_of_one_process(
    make_trainer, make_group, make_rows, tmp_path, common
):
    rows = tuple(with_common_tokens(make_rows(12, seed=seed), 20, common) for seed in (0, 1))
    settings = {"rows": rows, "depth": 3, "layers": "last:1", "train": {"token_budget": 12}}
    alone = make_trainer(**settings)
    alone.prepare()
    for kind in ("memory", "file"):
        groups, trainers = make_group(2, **settings)
        passes = [0, 0]
        for rank, trainer in enumerate(trainers):
            if kind == "file":
                trainer.files = TrunkFiles(tmp_path, "base", 0)
            count_trunks(trainer.model, passes, rank)
        assert in_threads(groups, lambda rank, trainers=trainers: trainers[rank].prepare()) == [None, None]
        for trainer in trainers:
            for name in ("train", "val"):
                ours, theirs = getattr(trainer.precomputed, name), getattr(alone.precomputed, name)
                assert torch.equal(ours._flat, theirs._flat)
        assert max(passes) - min(passes) <= 2  # one per split
        assert min(passes) >= 2
    assert sorted(path.name for path in tmp_path.glob("trunk-*.bin")) == ["trunk-training.bin", "trunk-validation.bin"]


def test_without_room_for_the_file_all_processes_continue_without_the_trunk(make_group, monkeypatch, tmp_path):
    def full(path, num_bytes):
        raise CheckpointError(f"{path}: the disk is full")

    monkeypatch.setattr(lorchestra.inference.trunk, "atomic_path", full)
    groups, trainers = make_group(2, depth=3, layers="last:1")
    for trainer in trainers:
        trainer.files = TrunkFiles(tmp_path, "base", 0)
    for trainer in trained(groups, trainers):
        assert (trainer.precomputed.train, trainer.precomputed.val) == (None, None)
        assert [member.status for member in trainer.state.members] == ["finished"] * 3


def count_trunks(model, counts, rank):
    """Count the passes of a model that return the trunk."""
    forward = model.forward

    def counted(batch, outputs="log_probs", **inputs):
        counts[rank] += outputs == "trunk"
        return forward(batch, outputs, **inputs)

    model.forward = counted


@pytest.mark.parametrize("size", [1, 3])
def test_a_checkpoint_is_resumed_by_any_number_of_processes(make_trainer, make_group, train, size):
    settings = {"dropout": 0.2, "regularize": {"weight_decay_b": 1.0}, "train": {"epochs": 3}}
    whole = train(make_trainer(**settings))
    groups, trainers = make_group(2, **settings)
    saved = []

    def interrupted(rank):
        trainers[rank].callback.should_stop = StopAfter(4 if rank == 0 else 1000).should_stop

        def checkpoint():
            tensors = {name: tensor.clone() for name, tensor in trainers[rank].gathered_tensors().items()}
            if rank == 0:
                saved.append((TrainState.from_json(trainers[0].state.to_json()), tensors))

        trainers[rank].run(checkpoint)

    ends = in_threads(groups, interrupted)
    assert all(isinstance(end, Interrupted) for end in ends), ends
    ((state, tensors),) = saved
    assert 0 < state.step < whole.num_steps
    assert [trainer.state.step for trainer in trainers] == [state.step] * 2  # a stop in one process stops all
    groups, trainers = make_group(size, **settings)
    for trainer in trainers:
        trainer.restore(TrainState.from_json(state.to_json()), tensors)
    trained(groups, trainers)
    torch.testing.assert_close(joined(trainers, "values"), whole.model.adapters.values, rtol=0, atol=1e-9)
    assert trainers[0].state.tokens == whole.state.tokens
    with pytest.raises(CheckpointError, match=r"values should be torch.float64 \[4, "):
        make_group(2, members=4)[1][1].restore(state, tensors)


def test_a_stop_while_the_trunk_is_computed_stops_all_processes(make_group):
    groups, trainers = make_group(2, depth=3, layers="last:1", train={"token_budget": 12})
    trainers[1].callback.should_stop = StopAfter(2).should_stop
    ends = in_threads(groups, lambda rank: trainers[rank].run(lambda: None))
    assert all(isinstance(end, Interrupted) for end in ends), ends
    assert [trainer.state.step for trainer in trainers] == [0, 0]


def test_a_failed_member_of_one_process_is_known_to_all(make_group):
    groups, trainers = make_group(2)
    trainers[1].model.adapters.values[1, 5] = torch.nan
    trained(groups, trainers)
    for trainer in trainers:
        assert [member.status for member in trainer.state.members] == ["finished", "finished", "failed"]
        assert trainer.state.members[2].failed_step == 1


class Asked(Callback):
    """Counts the questions whether to stop; after some the answer is yes."""

    def __init__(self, stop_at=1000):
        self.asked, self.stop_at = 0, stop_at

    def should_stop(self):
        self.asked += 1
        return self.asked >= self.stop_at


def work(steps, callback):
    """Work that asks after each step whether to stop."""
    for _ in range(steps):
        if callback.should_stop():
            raise Interrupted
    return steps


@pytest.mark.parametrize(
    ("steps", "stop_at", "ends"), [(5, 1000, [None, None]), (0, 1000, [None, None]), (9, 3, [Interrupted] * 2)]
)
def test_the_others_follow_the_first_process(steps, stop_at, ends):
    """It alone works; a stop that is requested in another process reaches it."""
    groups, callbacks = thread_groups(2), [Asked(), Asked(stop_at)]
    results = in_threads(groups, lambda rank: led(groups[rank], callbacks[rank], lambda asked: work(steps, asked)))
    assert [None if result is None else type(result) for result in results] == ends
    assert callbacks[0].asked == min(steps, stop_at)


def test_an_error_of_the_first_process_is_that_of_all():
    groups = thread_groups(3)

    def fail(asked):
        asked.should_stop()
        raise CheckpointError("the disk is full")

    results = in_threads(groups, lambda rank: led(groups[rank], Callback(), fail))
    assert [(type(result), str(result)) for result in results] == [(CheckpointError, "the disk is full")] * 3


def test_any_process_may_request_a_stop_or_the_end():
    groups = thread_groups(2)
    stops = [JointStop(StopAfter(2, finish=rank == 1), groups[rank]) for rank in range(2)]
    stops[0].callbacks[0].left = 1000
    answers = in_threads(groups, lambda rank: [stops[rank].should_stop() for _ in range(4)])
    assert answers == [[False, False, True, True]] * 2
    assert in_threads(groups, lambda rank: stops[rank].should_finish()) == [True, True]
