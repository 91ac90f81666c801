"""The benchmark: its quick form on a tiny base, and the count of operations it measures against."""

import json
import re

import pytest
import speed
import torch
import transformers
from bench import memory
from bench.flops import Shape, Work, shape_of, training_flops, work_of
from bench.rows import make_rows, similar_lengths
from bench.setting import Setting
from bench.table import COLUMNS
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from lorchestra.nn.packing import Item, pack
from lorchestra.types import EncodedExample

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quick(tiny_base, out, only, *more):
    """The sections and the lines of the written table."""
    command = ["--quick", "--base", str(tiny_base), "--members", "1,2", "--mean", "12", "--prefix", "32"]
    sections = speed.main([*command, "--only", only, "--out", str(out), *more])
    lines = [line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return sections, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_quick_form_measures_every_case_and_the_ways_agree(tiny_base, tmp_path, capsys):
    sections, table = quick(tiny_base, tmp_path / "table.md", "train,inference,prefix,limit")
    assert table[0] == list(COLUMNS)
    assert all(len(row) == len(COLUMNS) for row in table)
    cells = {(row[0], row[1], row[2]): row[3:] for row in table[2:]}
    assert len(cells) == len(table) - 2
    for targets in ("q+v", "all linear"):
        for layers in ("all layers", "last third"):
            for keys, case in (("a0 a1 b", f"training, {targets}"), ("a0 a1 b c", f"inference, {targets}")):
                for key in keys.split():
                    assert (f"{case}, {layers}", key, "any (2)") in cells
                for members in "12":
                    figure, *ratios = cells[f"{case}, {layers}", "packed", members]
                    assert re.fullmatch(r"[\d,]+ tokens/s \([\d,]+ to [\d,]+\)", figure)
                    assert [bool(ratio) for ratio in ratios] == [True, True, True, "c" in keys]
    assert "base passes" in cells["inference, q+v, last third", "packed, wall time", "2"][0]
    differences = [value for part in sections for name, value in part.numbers.items() if name.endswith("difference")]
    assert len(differences) == 6
    # float32, answers of some tenths; that ways differ at all shows that they were not compared with themselves
    assert all(0 < difference < 1e-4 for difference in differences)
    assert "round 1 of 1" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(tiny_base, tmp_path, monkeypatch):
    """One of the six in a process, whose bytes are counted; the others are given a gigabyte more each."""
    alone, asked = memory._alone, []

    def scripted(way, members, setting, steps=memory.STEPS):
        asked.append((way, members, steps))
        if len(asked) == 1:
            scripted.peak, _ = alone("packed all layers", members, setting, steps)
        return scripted.peak + len(asked) * 10**9, members * one_adapter

    # r = 8, q and v of three layers, 4 bytes each
    one_adapter = 3 * 8 * ((32 + 32) + (32 + 16)) * 4
    monkeypatch.setattr(memory, "_alone", scripted)
    (section,), table = quick(tiny_base, tmp_path / "table.md", "memory", "--members", "5,6")
    assert 10**8 < scripted.peak < 2 * 10**9
    ways = [(row[0].rpartition(", ")[2], row[1], row[2]) for row in table[2:]]
    packed = [("all layers", "packed", "5"), ("all layers", "packed", "6"), ("last third", "packed", "5")]
    assert ways == [("all layers", "a0", "one run"), ("all layers", "a1", "one run"), *packed]
    assert all(re.fullmatch(r"\d\.\d\d GB", row[3]) for row in table[2:])
    # M = 6 after two steps (the fourth process) against M = 5 after three (the sixth)
    assert asked[3] == ("packed all layers", 6, 2)
    assert asked[5] == ("packed all layers", 5, 3)
    # five copies of one more adapter
    assert f"{-2000:+,.1f} MB" in section.notes[0]
    assert f"best copy of 1 more adapters are {5 * one_adapter / 1e6:,.1f} MB" in section.notes[0]
    assert section.numbers["memory residue"] == -2 * 10**9 - 5 * one_adapter


def test_a_process_counts_its_adapters(tiny_base, capsys):
    """What the processes run, in this one."""
    setting = Setting(base=str(tiny_base), members=(2,), mean=12)
    memory.run_alone("packed all layers", 2, setting, 1)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["adapters"] == 2 * 3 * 8 * ((32 + 32) + (32 + 16)) * 4
    assert found["peak"] > 10**8


def test_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--only", "trian"])
    assert "trian: unknown; choose from train, inference" in capsys.readouterr().err


def test_batches_of_like_lengths_have_each_members_number_of_rows():
    rows = make_rows(32, 20, 100)
    taken = similar_lengths([Item(m, rows[9 * m + i]) for m in (0, 1) for i in range(8)], rows, 8)
    lengths = sorted(row.num_tokens for row in rows)
    for m in (0, 1):
        own = sorted(item.example.num_tokens for item in taken if item.member == m)
        assert own in [lengths[i : i + 8] for i in range(0, 32, 8)]


def counted(model, length, rows):
    """Operations that torch counts in forward and backward of a plain batch."""
    ids = torch.randint(0, model.config.vocab_size, (rows, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("adapted", [("q_proj", "v_proj"), ("k_proj",), ("v_proj", "o_proj", "up_proj"), ALL])
@pytest.mark.parametrize("length", [1, 5])
def test_count_equals_what_autograd_does_where_every_output_is_read(adapted, length):
    config = transformers.LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=50, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    shape = shape_of(model.model.layers[0], 3)
    assert shape.attention_width == 32
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=list(adapted), task_type="CAUSAL_LM"))
    rows = 7
    # plain attention looks at every pair of a row, also at those that its mask then hides
    pairs = rows * length * length
    work = Work(tokens=rows * length, pairs=pairs, read_tokens=rows * length, read_pairs=pairs, options=50)
    assert training_flops(shape, work, adapted, rank=2) == counted(peft, length, rows)


def test_count_of_unread_positions_by_hand():
    """Two layers of width 2 with one head; four tokens, of which one is read, which sees four keys."""
    maps = {"q_proj": (2, 2), "k_proj": (2, 2), "v_proj": (2, 2), "o_proj": (2, 2), "up_proj": (2, 4)}
    work = Work(tokens=4, pairs=10, read_tokens=1, read_pairs=4, options=3)
    head = 2 * 2 * 2 * 3  # forward and backward, one token
    first_frozen = 4 * (3 * 8 + 2 * 8 + 2 * 16)  # q, k, v forward only; o and up twice
    last_frozen = 4 * 2 * (8 + 8) + 1 * 2 * (8 + 8 + 16)  # k, v of all tokens; q, o, up of the one read
    first_attention = 10 * 2 * 2 * (2 + 3)  # no gradient of keys
    last_attention = 4 * 2 * 2 * (2 + 4)
    first_adapters = 4 * 2 * 2 * (3 * 2 + 2 * 2)  # q and v, rank 1, no gradient of x
    last_adapters = (4 + 1) * 2 * (3 * 2 + 3 * 2)
    expected = head + first_frozen + last_frozen + first_attention + last_attention + first_adapters + last_adapters
    assert training_flops(Shape(2, 2, maps), work, ("q_proj", "v_proj"), rank=1) == expected


def test_work_of_a_packed_batch_by_hand():
    rows = [EncodedExample(i, (7, 8, 9 + i, 3), ((1,), (2,)), 0) for i in range(2)]
    alone = work_of(pack([Item(m, row) for m in (0, 1) for row in rows]))
    assert alone == Work(tokens=16, pairs=4 * 10, read_tokens=4, read_pairs=4 * 4, options=2)
    # with two shared tokens, each member has them once: 3 pairs, and 3 + 4 for a row's other two tokens
    shared = work_of(pack([Item(m, row) for m in (0, 1) for row in rows], shared=2))
    assert shared == Work(tokens=12, pairs=2 * (3 + 2 * 7), read_tokens=4, read_pairs=4 * 4, options=2)
