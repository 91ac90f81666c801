"""The benchmark of quantized bases, in its quick form on a tiny base."""

import pytest
import quantized

pytest.importorskip("bitsandbytes", reason="needs the extra quant")


def test_every_way_is_measured(tiny_base, tmp_path):
    out = tmp_path / "table.md"
    ways = quantized.main(["--quick", "--base", str(tiny_base), "--members", "1,2", "--mean", "12", "--out", str(out)])
    assert {(way.kind, way.members, way.rows) for way in ways} == {
        (kind, members, rows) for kind in ("none", "nf4", "int8") for members in (1, 2) for rows in (1, 8)
    }
    by_case = {(way.members, way.rows): way.tokens for way in ways}
    assert by_case[2, 8] == 2 * by_case[1, 8]
    assert len([line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("|")]) == 14
