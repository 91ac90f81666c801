"""The page's files, and the routes that only it needs: their keys, headers and errors."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from pathlib import Path

import pytest
from live_server import KEY, TRAINED, served, serving

from lorchestra.config.data import DataConfig
from lorchestra.data.row_writer import RowWriter
from lorchestra.runs.similar import SimilarRows
from lorchestra.server import page_routes
from lorchestra.server.registry import ServedRun
from lorchestra.types import Example

ROWS = [
    Example("1", "the parcel never arrived", ("no", "yes"), 1),
    Example("2", "the parcel came on time", ("no", "yes"), 0),
    Example("3", "the parcel came on time", ("no", "yes"), 1),
    Example("4", "where is my invoice", ("no", "yes"), None),
]
STATE = {"model": "fake", "state": "A parcel never came on time."}
RIGHT = STATE | {"question": "label", "answer": "yes", "prediction": "no"}
JSON = {"content-type": "application/json"}


def run_with(engine, similar=None):
    writer = RowWriter(DataConfig(train="train.csv"), typed=False)
    return dataclasses.replace(served(engine), writer=writer, similar=similar)


@pytest.fixture
def page(engine, tmp_path):
    """A server without keys that shows training rows and saves corrections."""
    run = run_with(engine, SimilarRows(ROWS, "label"))
    with serving([run], corrections=str(tmp_path / "corrections.jsonl")) as server:
        yield server


def post(server, path, body, **headers):
    return server.post(f"/v1/{path}", body, headers=JSON | headers)


@pytest.mark.parametrize("path", page_routes.PATHS)
def test_files_come_without_a_key_and_with_a_strict_policy(engine, path):
    with serving([served(engine)], [KEY]) as server:
        response = server.get(path)
        assert server.get("/v1/x_runs").status_code == 401
        assert server.get(f"{path}x").status_code == 401
    assert response.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy.pop("require-trusted-types-for") == "'script'"
    allowed = {name: value for name, value in policy.items() if value != "'none'"}
    assert allowed == dict.fromkeys(("script-src", "style-src", "img-src", "connect-src"), "'self'")
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} <= policy.keys()
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_every_file_of_the_page_is_served_and_none_needs_another_site():
    folder = files("lorchestra.server").joinpath("page")
    names = {entry.name for entry in folder.iterdir()}
    assert names == {name for name, _ in page_routes._FILES.values()}
    for name in names:
        text = folder.joinpath(name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            name
        )
    index = folder.joinpath("index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son[a-z]+=", index)


def test_runs_are_reported_with_their_certificate_and_their_options_in_order(page, tiny_run):
    (run,) = page.get("/v1/x_runs").json()["runs"]
    assert run["questions"]["label"]["order"] == list(TRAINED.options)
    assert (run["shows_training_rows"], run["questions"]["label"]["certificate"]) == (True, None)
    entry = ServedRun.load(str(tiny_run)).to_dict()
    (question,) = entry["questions"].values()
    certificate = question["certificate"]
    (one,) = certificate["certificates"]
    assert (one["target_error"], one["confidence"], one["num_rows"], one["class"]) == (0.4, 0.95, 300, None)
    assert 0 < one["coverage"] <= 1
    assert certificate["guarantee"].startswith("At most 40 % of the automated rows are wrong, with 95 % confidence")
    assert ServedRun.load(str(tiny_run), raw=True).certificates == {}


def test_similar_rows_are_sorted_and_have_all_their_labels(page):
    data = post(page, "x_similar", STATE).json()
    assert data["reason"] is None
    assert [row["text"] for row in data["rows"]] == ["the parcel came on time", "the parcel never arrived"]
    assert [row["answers"] for row in data["rows"]] == [{"label": ["no", "yes"]}, {"label": ["yes"]}]
    assert 1 >= data["rows"][0]["similarity"] > data["rows"][1]["similarity"] > 0
    assert post(page, "x_similar", STATE | {"state": "Xylophone!"}).json()["rows"] == []


def test_long_training_rows_are_shortened(engine):
    index = SimilarRows([Example("1", "word " * 1000, ("no", "yes"), 1)], "label")
    with serving([run_with(engine, index)]) as server:
        (row,) = post(server, "x_similar", STATE | {"state": "a word"}).json()["rows"]
    assert len(row["text"]) == 2004


def test_training_rows_of_a_run_are_read_only_if_wanted_and_missing_ones_reported(tiny_run, tmp_path):
    assert ServedRun.load(str(tiny_run)).similar is None
    train = Path(tiny_run).parent / "train.csv"
    run = ServedRun.load(str(tiny_run), show_training_rows=True)
    assert run.similar.nearest("good film", 3)[0].answers == {"train": ["yes"]}
    train.rename(tmp_path / "moved.csv")
    try:
        run = ServedRun.load(str(tiny_run), show_training_rows=True)
    finally:
        (tmp_path / "moved.csv").rename(train)
    assert run.similar == "The run's training rows cannot be read; the server's log says why."
    with serving([run], timeout=120) as server:
        body = post(server, "x_similar", {"model": run.name, "state": "x"}).json()
    assert body == {"rows": [], "reason": run.similar}


def test_what_was_not_asked_for_does_not_exist(live):
    for path, option in (("x_similar", "--show-training-rows"), ("x_corrections", "--corrections")):
        response = post(live, path, RIGHT)
        assert response.status_code == 404
        assert option in response.json()["detail"]["message"]
    assert live.get("/v1/x_runs").json()["saves_corrections"] is False


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"state": " "}, ["state"]),
        ({"state": 3}, ["state"]),
        ({"question": "other"}, ["question"]),
        ({"question": 3}, ["question"]),
        ({"answer": "maybe"}, ["answer"]),
        ({"answer": None}, ["answer"]),
        ({"prediction": "maybe"}, ["prediction"]),
        ({"prediction": 3}, ["prediction"]),
    ],
)
def test_invalid_corrections_are_refused_and_not_saved(page, tmp_path, change, location):
    response = post(page, "x_corrections", RIGHT | change)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", *location]
    assert not (tmp_path / "corrections.jsonl").exists()


@pytest.mark.parametrize("missing", ["model", "state", "question", "answer"])
def test_missing_fields_are_named(page, missing):
    body = {key: value for key, value in RIGHT.items() if key != missing}
    assert post(page, "x_corrections", body).json()["detail"][0]["loc"] == ["body", missing]


@pytest.mark.parametrize("path", ["x_similar", "x_corrections"])
def test_what_another_site_could_send_is_refused(page, path):
    plain = page.post(f"/v1/{path}", RIGHT, headers={"content-type": "text/plain"})
    rebound = post(page, path, RIGHT, host=f"attacker.example:{page.port}")
    assert (plain.status_code, rebound.status_code) == (415, 403)
    for host in (f"localhost:{page.port}", f"[::1]:{page.port}"):
        assert post(page, path, RIGHT, host=host).is_success
    assert "access-control-allow-origin" not in page.get("/v1/x_runs", headers={"origin": "https://x.example"}).headers


def test_with_keys_any_name_is_fine_and_the_key_is_needed(engine, tmp_path):
    file = tmp_path / "corrections.jsonl"
    with serving([run_with(engine)], [f"{KEY} anna"], corrections=str(file)) as server:
        assert post(server, "x_corrections", RIGHT).status_code == 401
        named = post(server, "x_corrections", RIGHT, host="server.example", authorization=f"Bearer {KEY}")
    assert named.status_code == 201
    assert '"key": "anna"' in file.read_text()
