"""`metaspec jobs` as a user starts it, with the real commands, a real server of models, and HTTP."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metaspec import objectives
from metaspec._run_lock import holder
from metaspec_contract.links import structure_link
from metaspec_contract.run_folder import read_report
from metaspec_simulation.source import SolverSource
from metaspec_testing.commands import Command, give
from metaspec_testing.jobs import RunningJobs, running_jobs
from metaspec_testing.servers import RunningServer

DOCUMENT = Path(__file__).parents[2] / "docs" / "jobs.md"
LONG = {"steps": 400, "starts": 1}
"""Settings of a job that is still running when a test has seen its first steps."""


@pytest.fixture(scope="module")
def service(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningJobs]:
    with running_jobs(tmp_path_factory.mktemp("jobs") / "new", "--url", server.url) as running:
        yield running


def test_a_job_runs_as_the_command_and_is_watched_to_its_end(
    service: RunningJobs, server: RunningServer, tmp_path: Path
) -> None:
    made = service.make(name="first", seed=3)
    assert (made["state"], made["rank"], made["settings"]["seed"]) == ("waiting", None, 3)
    seen = list(service.events("first"))
    steps = [(data["step"], number) for event, data, number in seen if event == "progress"]
    assert [step for step, _ in steps] == list(range(1, 21))
    assert [data["state"] for event, data, _ in seen if event == "state"][-2:] == ["running", "finished"]
    event, end, _ = seen[-1]
    report = read_report(service.folder / "first")
    assert (event, end["state"], end["step"], end["steps"]) == ("end", "finished", 20, 20)
    assert (end["rank"], end["ranked_by"], end["verified"]) == (1, "objective bayer", False)
    assert end["objective"] == report.designs[0].objective
    assert end["min_efficiency"] == report.designs[0].predicted.min_efficiency

    later = [data["step"] for event, data, _ in service.events("first", steps[14][1]) if event == "progress"]
    assert later == [16, 17, 18, 19, 20]
    nothing = service.client.get("/jobs/first/events", headers={"Last-Event-ID": str(steps[-1][1])})
    assert nothing.status_code == 204

    options = ["--steps", 20, "--starts", 1, "--radius-nm", 120, "--seed", 3]
    assert give(["optimise", "--url", server.url, "--out", tmp_path / "command", *options]) == 0
    for name in ("designs.npy", "spectra.npy", "history.csv"):
        sent = service.client.get(f"/jobs/first/{name}")
        assert sent.content == (tmp_path / "command" / name).read_bytes(), name
    design = np.load(service.folder / "first" / "designs.npy")[0]
    assert service.show("first")["studio"] == structure_link(server.url, design, "diffractionnet")
    page = service.client.get("/jobs/first/report")
    assert page.text == (service.folder / "first" / "report.html").read_text()
    assert "script-src" not in page.headers["content-security-policy"]
    assert (
        service.client.get("/jobs/first/best.gds").content == (service.folder / "first" / "design_000.gds").read_bytes()
    )
    assert "objective bayer" in service.client.get("/jobs/first/job.log").text
    assert holder(service.folder / "first") is None


def test_a_paused_job_goes_on_where_it_was(service: RunningJobs) -> None:
    service.make(name="paused", **LONG)
    before = service.until_step("paused", 5)
    answer = service.client.post("/jobs/paused/pause")
    assert (answer.status_code, answer.json()["state"]) == (202, "pausing")
    paused = service.until("paused", "paused")
    assert before["step"] <= paused["step"] < 400
    assert (service.folder / "paused" / "checkpoint.npz").exists()
    assert holder(service.folder / "paused") is None
    assert "Repeat the command to resume." in service.client.get("/jobs/paused/job.log").text
    assert service.client.post("/jobs/paused/pause").json()["state"] == "paused"  # again: nothing to do
    answer = service.client.post("/jobs/paused/resume")
    assert (answer.status_code, answer.json()["state"]) == (200, "waiting")
    seen = [data for event, data, _ in service.events("paused") if event == "progress"]
    assert [one["step"] for one in seen] == list(range(1, 401))
    again = service.client.post("/jobs/paused/resume")
    assert (again.status_code, again.json()["detail"]) == (409, "paused cannot be resumed: it has finished")


@pytest.mark.slow
def test_a_quiet_stream_shows_that_it_is_alive(service: RunningJobs) -> None:
    service.make(name="quiet", **LONG)
    service.client.post("/jobs/quiet/pause")
    service.until("quiet", "paused")
    with service.client.stream("GET", "/jobs/quiet/events") as answer:
        assert any(line == ":" for line in answer.iter_lines())
    assert service.client.delete("/jobs/quiet").status_code == 204


def test_one_worker_runs_one_job_after_the_other_and_ranks_them(service: RunningJobs) -> None:
    names = [service.make(objective="red", seed=seed)["name"] for seed in (1, 2, 3)]
    assert names == ["red-1", "red-2", "red-3"]
    most = 0
    while True:
        listed = [job for job in service.client.get("/jobs").json()["jobs"] if job["name"] in names]
        states = [job["state"] for job in listed]
        most = max(most, sum(state in ("running", "pausing") for state in states))
        waiting = {job["name"]: job["queue"] for job in listed if job["state"] == "waiting"}
        assert waiting == dict(zip(names[3 - len(waiting) :], range(1, 4), strict=False)), (
            "in the order of their making"
        )
        assert "failed" not in states
        if states == ["finished"] * 3:
            break
        time.sleep(0.05)
    assert most == 1
    values = [read_report(service.folder / job["name"]).designs[0].objective for job in listed]
    assert values == sorted(values, reverse=True)
    assert [(job["rank"], job["ranked_by"]) for job in listed] == [(rank, "objective red") for rank in (1, 2, 3)]


def test_a_verified_run_is_ranked_by_what_was_simulated(service: RunningJobs) -> None:
    service.make(name="checked", objective="green", steps=5, starts=2)
    before = service.until("checked", "finished")
    folder = service.folder / "checked"
    simulate = [sys.executable, "-m", "metaspec_simulation", "verify", str(folder), "--cells", "24"]
    subprocess.run(simulate, check=True, capture_output=True, timeout=600)
    after = service.show("checked")
    with SolverSource(cells=24) as solver:
        spectra = solver.predict(np.load(folder / "designs.npy"))
    values = objectives.by_name("green")(spectra)[0]
    assert (before["verified"], before["cells"]) == (False, None)
    assert (after["verified"], after["cells"], after["rank"]) == (True, 24, 1)
    assert after["objective"] == pytest.approx(values.max(), abs=1e-6)
    assert after["min_efficiency"] == pytest.approx(spectra.min_efficiency()[values.argmax()], abs=1e-6)
    layout = service.client.get("/jobs/checked/best.gds").content
    assert layout == (folder / f"design_{values.argmax():03d}.gds").read_bytes()


def test_designs_of_a_job_are_polished_by_another(service: RunningJobs) -> None:
    service.make(name="rough", steps=5)
    service.until("rough", "finished")
    settings = {"name": "polished", "command": "polish", "folder": "rough", "source": "surrogate", "steps": 5}
    answer = service.client.post("/jobs", json=settings)
    assert answer.status_code == 201, answer.text
    found = service.until("polished", "finished", "failed")
    assert (found["state"], found["ranked_by"]) == ("finished", "objective balanced")
    assert read_report(service.folder / "polished").designs[0].unpolished is not None


def test_the_commands_of_the_document(service: RunningJobs, tmp_path: Path) -> None:
    text = (DOCUMENT.read_text().partition("```sh\n")[2]).partition("```")[0]
    script = re.sub(r"^JOBS=.*", f"JOBS={service.url}", text)
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "event: end" in done.stdout
    np.testing.assert_array_equal(
        np.load(tmp_path / "designs.npy"), np.load(service.folder / "routers" / "designs.npy")
    )
    assert service.until("balanced-1", "finished")["ranked_by"] == "objective balanced"


def test_a_job_that_fails_says_why_and_may_be_tried_again(service: RunningJobs) -> None:
    service.make(name="broken", model="nowhere")
    end = list(service.events("broken"))[-1][1]
    assert end["state"] == "failed"
    assert "nowhere" in end["message"]
    assert end["message"] == service.client.get("/jobs/broken/job.log").text.splitlines()[-1]
    assert service.client.post("/jobs/broken/resume").json()["state"] == "waiting"
    assert service.until("broken", "failed")["message"] == end["message"]
    assert service.client.delete("/jobs/broken").status_code == 204
    assert not (service.folder / "broken").exists()
    assert service.client.get("/jobs/broken").status_code == 404


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_after_a_restart_everything_is_as_it_was(server: RunningServer, tmp_path: Path, number: signal.Signals) -> None:
    with running_jobs(tmp_path, "--url", server.url) as before:
        before.make(name="runs", **LONG)
        before.make(name="stays", **LONG)
        before.client.post("/jobs/stays/pause")
        before.make(name="waits")
        before.until_step("runs", 5)
        process = holder(tmp_path / "runs")
        status = before.stop(number)
        survivor = holder(tmp_path / "runs")
        if number == signal.SIGKILL:
            assert (status, survivor) == (-signal.SIGKILL, process)
        else:
            assert (status, survivor) == (128 + signal.SIGTERM, None)
            assert (tmp_path / "runs" / "checkpoint.npz").exists()
        with running_jobs(tmp_path, "--url", server.url) as after:
            found = after.until("runs", "running", "finished")
            states = {job["name"]: job["state"] for job in after.client.get("/jobs").json()["jobs"]}
            assert found["state"] == "running", "it was over too early to be found again"
            assert (states["stays"], states["waits"]) == ("paused", "waiting")
            if number == signal.SIGKILL:
                assert holder(tmp_path / "runs") == process
            assert after.until("runs", "finished", "failed")["state"] == "finished"
            assert after.until("waits", "finished", "failed")["state"] == "finished"
            assert after.show("stays")["state"] == "paused"
            steps = [data["step"] for event, data, _ in after.events("runs") if event == "progress"]
            # One process, or one after the other. The line of the step in which SIGTERM comes may be missing or repeated.
            assert steps == sorted(steps)
            assert len(set(range(1, 401)) ^ set(steps)) + len(steps) - len(set(steps)) <= (number == signal.SIGTERM)


def test_two_services_do_not_share_a_folder(service: RunningJobs, metaspec: Command) -> None:
    status, _, errors = metaspec("jobs", "--folder", service.folder, "--port", 0)
    assert status == 2
    assert errors.startswith(f"metaspec: process {service.process.pid} works in {service.folder}")


@pytest.mark.parametrize(
    ("body", "status", "field", "detail"),
    [
        ({"steps": 0}, 422, "steps", "greater than or equal to 1"),
        ({"steps": "many"}, 422, "steps", "steps: expected an integer, got 'many'"),
        ({"steps": True}, 422, "steps", "steps: expected an integer, got True"),
        ({"speed": 1}, 422, "speed", "speed: unknown field, expected some of objective, steps"),
        ({"out": "elsewhere"}, 422, "out", "unknown field"),
        ({"objective": "best"}, 422, "objective", "objective must be one of bayer, "),
        ({"symmetry": "round"}, 422, "symmetry", "got 'round'"),
        ({"start": ["../outside.npy"]}, 422, "start", "must lie in the working folder"),
        ({"start": ["missing.npy"]}, 422, "start", "got 'missing.npy': missing"),
        ({"gds_layer": "--url=x"}, 422, "gds_layer", "must be two integers"),
        ({"name": "../up"}, 422, "name", "expected 1 to 64 letters"),
        ({"name": 5}, 422, "name", "expected 1 to 64 letters"),
        ({"command": "verify"}, 422, "command", "expected optimise or polish, got 'verify'"),
        ({"command": "polish"}, 422, "folder", "folder: missing, expected a file"),
        ([1], 422, None, "expected a JSON object"),
    ],
)
def test_settings_that_the_command_refuses(
    service: RunningJobs, body: Any, status: int, field: str | None, detail: str
) -> None:
    listed = sorted(path.name for path in service.folder.iterdir())
    answer = service.client.post("/jobs", json=body)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem.get("field")) == (status, status, field)
    assert detail in problem["detail"]
    assert sorted(path.name for path in service.folder.iterdir()) == listed


def test_requests_that_are_refused(service: RunningJobs) -> None:
    client = service.client
    service.make(name="taken", **LONG)
    service.until("taken", "running")

    def refused(method: str, path: str, status: int, detail: str, **options: Any) -> None:
        answer = client.request(method, path, **options)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
        assert detail in answer.json()["detail"]

    json, text = {"content-type": "application/json"}, {"content-type": "text/plain"}
    refused("POST", "/jobs", 409, "expected a new one, got 'taken'", json={"name": "taken"})
    refused("DELETE", "/jobs/taken", 409, "cannot be removed while it is running: pause it first")
    refused(
        "POST",
        "/jobs",
        415,
        "expected Content-Type application/json, got 'text/plain'",
        content="{}",
        headers=text,
    )
    refused("POST", "/jobs", 400, "is not JSON", content="{", headers=json)
    refused("POST", "/jobs", 400, "comes twice", content='{"steps": 1, "steps": 2}', headers=json)
    refused("POST", "/jobs", 400, "NaN is not a number", content='{"radius_nm": NaN}', headers=json)
    refused("POST", "/jobs", 413, "at most 65536 bytes", content=b" " * 70000, headers=json)
    refused("GET", "/jobs?state=running", 400, "expected no query, got 'state=running'")
    refused("GET", "/jobs/none", 404, "there is no job 'none'")
    refused("GET", "/nothing", 404, "nothing at this address")
    refused("PUT", "/jobs/taken/pause", 405, "expected POST, got PUT")
    refused("GET", "/jobs/taken/best.gds", 404, "has no designs yet")
    refused("GET", "/jobs/taken/job.json.exe", 404, "expected report, best.gds or a file")
    refused("GET", "/jobs/%2e%2e/secret.npy", 404, "there is no job '..'")
    refused("GET", "/jobs/taken/events", 400, "Last-Event-ID", headers={"Last-Event-ID": "last"})
    # Pages of other origins: a name that was made to lead here, a request that a browser sends for another page.
    refused("GET", "/jobs", 403, "expected a Host of", headers={"Host": "evil.example"})
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        refused("POST", "/jobs/taken/pause", 403, "expected", headers=headers)
        refused("DELETE", "/jobs/taken", 403, "expected", headers=headers)
    refused("GET", "/events", 403, "expected a request of", headers={"Sec-Fetch-Site": "same-site"})
    link = client.get("/", headers={"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"})
    assert link.status_code == 200
    own = client.post("/jobs/taken/pause", headers={"Origin": service.url, "Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 202
    service.until("taken", "paused")
    assert client.delete("/jobs/taken").status_code == 204


def test_other_machines_need_a_token(server: RunningServer, metaspec: Command, tmp_path: Path) -> None:
    status, _, errors = metaspec("jobs", "--folder", tmp_path / "jobs", "--host", "0.0.0.0", "--port", 0)
    assert (status, errors) == (
        2,
        "metaspec: --host 0.0.0.0 is reached from other machines, which needs --token-file\n",
    )
    assert not (tmp_path / "jobs").exists()
    file, token = tmp_path / "token", "a-secret-of-16-letters"
    file.write_text("short")
    status, _, errors = metaspec("jobs", "--folder", tmp_path / "jobs", "--token-file", file, "--port", 0)
    assert (status, errors) == (2, f"metaspec: --token-file: {file} must hold one word of at least 16 characters\n")
    file.write_text(f"{token}\n")
    with running_jobs(tmp_path / "jobs", "--token-file", file, "--url", server.url) as service:
        client = service.client
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "metaspec-jobs=x"}):
            for path in ("/jobs", "/options", "/events", "/jobs/x/report"):
                assert client.get(path, headers=headers).status_code == 401, path
        assert client.get("/").status_code == client.get("/static/jobs.js").status_code == 200
        assert client.post("/session", json={"token": "wrong"}).status_code == 401
        bearer = {"Authorization": f"Bearer {token}"}
        assert client.get("/jobs", headers={**bearer, "Host": "jobs.example"}).status_code == 200
        given = client.post("/session", json={"token": token})
        assert given.status_code == 204
        assert "HttpOnly" in given.headers["set-cookie"]
        assert "SameSite=strict" in given.headers["set-cookie"]
        assert client.get("/jobs").json() == {"jobs": []}  # by the cookie, which the client keeps
