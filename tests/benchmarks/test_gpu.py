"""The GPU's benchmark, tried on a CPU and a tiny shape."""

import gpu
import pytest
import torch


@pytest.mark.slow
def test_ways_agree_in_half_precision_and_nothing_is_written(capsys):
    before = {path.name for path in (gpu.ROOT / "benchmarks" / "results").iterdir()}
    sections = gpu.main(["--shape", "tiny", "--device", "cpu", "--members", "2", "--mean", "12", "--rounds", "1"])
    assert [row.way for section in sections for row in section.rows] == ["a0", "a1", "packed"] * 2
    differences = [value for section in sections for value in section.numbers.values()]
    assert all(0 < difference < 0.02 for difference in differences)  # losses of about 1.4, in bfloat16
    assert {path.name for path in (gpu.ROOT / "benchmarks" / "results").iterdir()} == before
    assert "not run, since this is not a GPU" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_says_so(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "torch sees no CUDA device" in capsys.readouterr().err
