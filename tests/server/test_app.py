"""The routes that report: models, runs, health, metrics, OpenAPI; and paths that do not exist."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from importlib.util import find_spec

import pytest
from live_server import FakeEngine, noul, served, serving

from lorchestra.errors import ConfigError, LorchestraError
from lorchestra.server.app import create_app
from lorchestra.server.registry import Registry, ServedRun


def test_models_are_listed_for_both_clients(live):
    data = live.get("/v1/models").json()
    names = ["fake", "fake/member_00", "fake/member_01", "fake/member_02", "fake/base", "jev-latest"]
    assert [model["name"] for model in data["models"]] == names
    assert [model["id"] for model in data["data"]] == names
    assert {model["release_date"] for model in data["models"]} == {"2026-11-28"}
    assert live.get("/v1/models/fake/base").json() == data["data"][4]
    missing = live.get("/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_the_runs_page_has_what_a_form_needs(live):
    assert live.get("/v1/x_runs").json() == {
        "runs": [
            {
                "name": "fake",
                "questions": {
                    "label": {
                        "type": "choice",
                        "instructions": "",
                        "options": ["no", "yes"],
                        "order": ["no", "yes"],
                        "calibrated": True,
                        "certified": True,
                        "certificate": None,
                    }
                },
                "num_members": 3,
                "calibrated": True,
                "certified": True,
                "shows_training_rows": False,
            }
        ],
        "saves_corrections": False,
    }


def test_a_run_is_described_by_its_directory(tiny_run, tiny_live):
    (run,) = tiny_live.get("/v1/x_runs").json()["runs"]
    assert (run["name"], run["num_members"], run["certified"]) == (tiny_run.name, 2, True)
    (question,) = run["questions"].values()
    assert (question["options"], question["calibrated"], question["certified"]) == (["no", "yes"], True, True)
    raw = ServedRun.load(str(tiny_run), raw=True)
    assert (raw.calibrated, raw.certified) == (frozenset(), frozenset())


def test_several_runs_are_served_by_name():
    engines = [FakeEngine(), FakeEngine(2)]
    with serving([served(engines[0], "one"), served(engines[1], "two")]) as live:
        for model, members in (("one", 3), ("two", 2), ("jev-latest", 3)):
            answer = live.post("/v1/systemone", noul(model=model)).json()
            assert answer["model"] == ("one" if model == "jev-latest" else model)
            assert len(answer["answers"]["q"]["x_members"]) == members


@pytest.mark.parametrize("names", [[], ["a", "a"], ["jev-latest"]])
def test_names_must_differ(names):
    with pytest.raises(ConfigError):
        Registry([served(FakeEngine(), name) for name in names])


def test_it_is_ready_after_a_pass_and_not_while_it_drains():
    engine = FakeEngine()
    engine.gate.clear()
    app = create_app([served(engine)])
    service = app.state.service
    assert not service.is_ready
    engine.gate.set()
    with serving([served(engine)]) as live:
        assert engine.batches[0] == ["A text."]
        assert live.get("/health/ready").json() == {"ready": True}
        live.service.drain()
        assert live.get("/health/ready").status_code == 503
        assert live.get("/health/live").status_code == 200
        refused = live.post("/v1/systemone", noul())
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.headers["connection"] == "close"


def test_a_run_that_cannot_answer_is_neither_ready_nor_alive(caplog):
    class Broken(FakeEngine):
        def encode(self, asked):
            raise LorchestraError("the base is broken")

    with pytest.raises(AssertionError, match="test question failed"), serving([served(Broken())]):
        pytest.fail("it became ready")
    assert "the base is broken" in caplog.text


def test_metrics_count_and_name_no_texts(live):
    live.post("/v1/systemone", noul("a secret"))
    live.post("/v1/systemone", b"{")
    live.post(
        "/v1/decisions",
        {"model": "fake", "input": "x", "questions": [{"type": "predicate", "instructions": "unanswerable"}]},
    )
    text = live.get("/metrics").text
    for line in (
        'lorchestra_requests_total{route="/v1/systemone",status="200"} 1.0',
        'lorchestra_requests_total{route="/v1/systemone",status="422"} 1.0',
        'lorchestra_answers_total{decision="none",model="fake",trained="false"} 1.0',
        "lorchestra_refusals_total 1.0",
        "lorchestra_input_tokens_total 2.0",
        "lorchestra_open_requests 0.0",
        "lorchestra_ready 1.0",
    ):
        assert line in text.splitlines(), line
    assert "secret" not in text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/systemone", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_unknown_paths_and_methods_have_the_shape_of_errors(live, method, path, status):
    import httpx

    response = httpx.request(method, live.url + path)
    assert response.status_code == status
    assert path in response.json()["detail"]["message"]
    assert "error" in httpx.get(f"{live.url}/v1/decisions").json()


def test_the_pages_of_openapi_describe_both_routes(live):
    schema = live.get("/openapi.json").json()
    for path in ("/v1/systemone", "/v1/decisions"):
        operation = schema["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        assert live.post(path, example | {"model": "fake"}).status_code == 200
    assert live.get("/docs").status_code == 200


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_no_generated_request_gets_a_5xx(live):
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error

    counts = Counter()

    def check(case):
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "fake"  # random names would end every request there
        response = case.call(timeout=30)
        counts[case.path, response.status_code] += 1
        case.validate_response(response, checks=[not_a_server_error])

    quick = settings(
        max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    for result in schemathesis.openapi.from_url(f"{live.url}/openapi.json").get_all_operations():
        for mode in schemathesis.GenerationMode:
            with suppress(Unsatisfiable):  # a page without parameters cannot be asked wrongly
                quick(given(result.ok().as_strategy(generation_mode=mode))(check))()
    assert max(status for _, status in counts) < 500
    assert counts["/v1/systemone", 200] > 0
    assert counts["/v1/decisions", 200] > 0
