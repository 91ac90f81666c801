import pytest

import lorchestra.models.ensemble
import lorchestra.planning.workload
from lorchestra.inference import predict, trunk
from lorchestra.inference.packed import run_packed
from lorchestra.nn.packing import BASE, pack, pack_prefix
from lorchestra.planning.workload import PlannedRun, plan_workload
from lorchestra.training import trainer
from lorchestra.types import EncodedExample


@pytest.fixture
def count_passes(monkeypatch):
    """Counts packed tokens of every pass, by the module that packs it."""
    tokens = {}

    def watch(name, module):
        def counted(*args, **kwargs):
            for batch, outputs in run_packed(*args, **kwargs):
                tokens.setdefault(name, []).append(batch.packing.num_tokens)
                yield batch, outputs

        monkeypatch.setattr(module, "run_packed", counted)

    for name, module in {"trainer": trainer, "trunk": trunk, "predict": predict}.items():
        watch(name, module)

    def counted_prefix(prefix, members, device):
        batch = pack_prefix(prefix, members, device)
        # below the adapters, one pass serves all members and is not counted with theirs
        tokens.setdefault("below" if members == [BASE] else "predict", []).append(batch.packing.num_tokens)
        return batch

    monkeypatch.setattr(lorchestra.models.ensemble, "pack_prefix", counted_prefix)
    return tokens


def with_prefix(rows):
    """The same rows after a common prefix of twenty tokens, which is then shared."""
    front = tuple(range(20))
    return [EncodedExample(row.row, front + row.prefix, row.choices, row.answer) for row in rows]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("layers", ["all", "last:1"])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_plan_matches_what_the_trainer_runs(make_trainer, make_rows, count_passes, train, layers, batch_size, prefix):
    rows = make_rows(12, "texts"), make_rows(7, "texts", seed=1)
    if prefix:
        rows = tuple(map(with_prefix, rows))
    trainer = make_trainer(rows=rows, layers=layers, train={"batch_size": batch_size})
    planned = plan_workload(PlannedRun.of(trainer), 3, 60)
    train(trainer)
    assert planned.micro_batches == len(planned.batches) == len(count_passes["trainer"])
    assert planned.work.train_tokens == sum(count_passes["trainer"])
    assert planned.work.trunk_tokens == sum(count_passes.get("trunk", []))
    assert planned.work.evaluate_tokens == sum(count_passes["predict"])
    assert planned.steps == trainer.state.step
    assert planned.tokens_per_epoch * 2 == trainer.state.tokens
    assert planned.work.updates == sum(trainer.state.num_updates)
    assert planned.shared == trainer.shared == 20 * prefix
    assert len(pack(planned.largest, shared=planned.shared).packing.input_ids[0]) == max(count_passes["trainer"])


@pytest.mark.parametrize("order", ["bootstrap", "folds"])
def test_plan_of_members_with_different_rows(make_trainer, make_rows, count_passes, train, order):
    trainer = make_trainer(rows=(make_rows(13, "texts"), make_rows(7, "texts", seed=1)), order=order)
    planned = plan_workload(PlannedRun.of(trainer), 3, 60)
    train(trainer)
    assert planned.work.train_tokens == sum(count_passes["trainer"])
    assert planned.steps == trainer.state.step
    assert planned.tokens_per_epoch * 2 == trainer.state.tokens


def test_base_predictions_for_the_kl_term(make_trainer, count_passes, train):
    trainer = make_trainer(regularize={"kl_beta": 0.1})
    work = plan_workload(PlannedRun.of(trainer), 3, 60).work
    train(trainer)
    assert work.base_tokens > 0
    assert work.base_tokens + work.evaluate_tokens == sum(count_passes["predict"])


def test_plan_may_have_more_members_than_the_trainer(make_trainer):
    few, many = make_trainer(members=2), make_trainer(members=6)
    assert plan_workload(PlannedRun.of(few), 6, 60) == plan_workload(PlannedRun.of(many), 6, 60)
    assert len(few.state.members) == 2


@pytest.mark.parametrize(("most_members", "most_items"), [(24, 500), (12, 100_000), (12, 240)])
def test_sample_of_steps_and_members_is_close_to_the_whole(
    make_trainer, make_rows, monkeypatch, most_members, most_items
):
    trainer = make_trainer(rows=(make_rows(90), make_rows(30, seed=1)), train={"epochs": 3})
    whole = plan_workload(PlannedRun.of(trainer), 24, 30)
    monkeypatch.setattr(lorchestra.planning.workload, "_MAX_MEMBERS", most_members)
    monkeypatch.setattr(lorchestra.planning.workload, "_MAX_ITEMS", most_items)
    part = plan_workload(PlannedRun.of(trainer), 24, 30)
    assert len(part.batches) < len(whole.batches) * 0.6
    assert part.tokens_per_epoch == whole.tokens_per_epoch
    assert part.work.train_tokens == pytest.approx(whole.work.train_tokens, rel=0.01)
    assert part.micro_batches == pytest.approx(whole.micro_batches, rel=0.1)
    assert part.work.evaluate_tokens == pytest.approx(whole.work.evaluate_tokens, rel=0.01)
