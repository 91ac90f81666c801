"""`lorchestra monitor`: table, JSON and exit codes."""

from __future__ import annotations

import json

from monitored_runs import certify, write_rows


def test_table_json_and_exit_codes(lorchestra, tiny_base, tmp_path):
    root = certify(tmp_path, tiny_base)
    same, longer = write_rows(tmp_path / "same.csv", 200, 2), write_rows(tmp_path / "longer.csv", 100, 2, long=4)
    code, out, _ = lorchestra("monitor", root, "--data", same, "--false-alarm", 0.01)
    assert code == 0
    assert "No alarm" in out
    assert "Look 1, at the level" in " ".join(out.split())
    code, out, _ = lorchestra("monitor", root, "--data", longer, "--json")
    assert code == 1
    assert json.loads(out)["alarm"] is True
    code, _, err = lorchestra("monitor", root)
    assert code == 2
    assert "--data: missing" in err
