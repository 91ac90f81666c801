"""`lorchestra report` on a real run of the tiny base: paths, exit codes, and messages."""

from __future__ import annotations

from lorchestra.config.mappings import to_yaml


def test_train_then_report(lorchestra, run_config, texts_csv, tmp_path):
    """Without an evaluation the error names the command; then a page about one run, and one about two."""
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(to_yaml(run_config(texts_csv(), adapt={"dropout": 0.1})))
    assert lorchestra("train", recipe, "--out", run, "--skip-evaluation")[0] == 0
    code, out, err = lorchestra("report", run)
    assert (code, out) == (2, "")
    assert f"not evaluated yet (no metrics.json); evaluate the run: lorchestra evaluate {run}" in err
    assert not (run / "report.html").exists()

    assert lorchestra("evaluate", run, "--ood", texts_csv("ood.csv", 8, seed=4))[0] == 0
    assert lorchestra("report", run) == (0, f"{run / 'report.html'}\n", "")
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    for part in ("MC dropout", "base, zero-shot", "ood: AUROC", "How training went", "tokens/s"):
        assert part in page, part

    code, out, err = lorchestra("report", run, run)
    assert (code, out) == (2, "")
    assert "--out: a page about several runs" in err
    both = tmp_path / "pages/both.html"
    assert lorchestra("report", run, run, "--out", both, "--examples", 0) == (0, f"{both}\n", "")
    assert "Which run is best?" in both.read_text()


def test_bad_calls_are_exit_code_2(lorchestra, tmp_path):
    code, _, err = lorchestra("report")
    assert code == 2
    assert "no run given" in err
    code, _, err = lorchestra("report", tmp_path / "none")
    assert code == 2
    assert "no such run directory" in err
