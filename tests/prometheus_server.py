"""A Prometheus of a test's own, with the rules that ship, which looks every second."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from monitoring.prometheus_api import Prometheus
from servers import free_port, wait_until

RULES = Path(__file__).parents[1] / "monitoring/prometheus/rules"


@contextmanager
def prometheus(folder: Path, port: int, jobs: list[str]) -> Iterator[Prometheus]:
    """`with prometheus(...) as api:` has asked each job at /JOB of that port of the loopback address."""
    for path in RULES.glob("*.yml"):
        (folder / path.name).write_text(re.sub(r"interval: \w+", "interval: 1s", path.read_text()))
    scrapes = [
        {
            "job_name": job,
            "metrics_path": f"/{job}",
            "honor_labels": True,
            "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        }
        for job in jobs
    ]
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": every, "rule_files": ["*.yml"], "scrape_configs": scrapes}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/config.yaml", f"--storage.tsdb.path={folder}/data"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=output, stderr=output)
    api = Prometheus(f"http://{address}")

    def has_asked() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return len(api.now("up == 1")) == len(jobs)
        except OSError:
            return False

    try:
        wait_until(has_asked, f"Prometheus has figures; its log: {log}", 30)
        yield api
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
