"""The benchmark of number formats, in its quick form on a tiny base."""

import number_formats


def test_every_case_is_measured_in_both_formats(tiny_base, tmp_path, capsys):
    out = tmp_path / "table.md"
    command = ["--quick", "--base", str(tiny_base), "--members", "2", "--mean", "12", "--out", str(out)]
    ways = number_formats.main(command)
    assert len(ways) == 2 * 2 * 2 * 2 * 2
    assert all(len(way.rates) == 1 and way.median > 0 for way in ways)
    lines = [line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(ways)
    cells = {tuple(cell.strip() for cell in line.strip("|").split("|")[:3]) for line in lines[2:]}
    assert len(cells) == len(ways)
    assert ("prediction, last third, long-tailed lengths", "lorchestra, M = 2", "bfloat16") in cells
    assert "in bfloat16 reach" in out.read_text(encoding="utf-8")
