"""`batching = "auto"`: on gthread, those who wait for one worker are predicted as one, and notice nothing."""

import json
import re
import threading
from pathlib import Path

import pytest
from model_zoo import Zoo
from servers import Server

CLIENTS, REQUESTS = 4, 12
SPOILED = 2  # which client asks for what cannot be


@pytest.fixture
def batching(tmp_path: Path) -> Path:
    """A model whose rows cost nothing beside the first, and one that gains nothing."""
    zoo = Zoo(tmp_path / "models")
    for path in (zoo.slow(warm_up_size=1000), zoo.scale()):
        (path.parent / "model.toml").write_text('batching = "auto"\n')
    return zoo.root


def ask(server: Server, client: int, problems: list[str]) -> None:
    connection = server.http()
    for number in range(REQUESTS):
        row = [client, number, 1]
        body = {"instances": [row, row[:2]] if client == SPOILED else [row]}
        connection.request("POST", "/v1/models/slow:predict", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if client == SPOILED:
            right = answer.status == 400
        else:
            right = answer.status == 200 and json.loads(text)["predictions"] == [[2 * value for value in row]]
        if not right:
            problems.append(f"{row}: {answer.status} {text!r}")
    connection.close()


def test_everybody_has_their_own_answer(batching: Path, worker_class: str) -> None:
    """Also while another client sends what is wrong; where a worker has one thread nothing is ever run as one."""
    problems: list[str] = []
    with Server(batching, worker_class, workers=1) as server:
        threads = [threading.Thread(target=ask, args=(server, client, problems)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        text = server.get("/metrics").body.decode()
        log = server.log()
    assert problems == []
    together = re.findall(r'^tiercel_batched_predictions_total\{model="slow",version="1"\} (\d+)', text, re.MULTILINE)
    assert bool(together) is (worker_class == "gthread")
    saves = {line["model"]: line["saves"] for line in map(json.loads, log.splitlines()) if "saves" in line}
    assert saves == ({"slow": True, "scale": False} if worker_class == "gthread" else {})
