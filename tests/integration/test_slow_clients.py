import io
from typing import Any

import pytest
from app_client import Client
from falcon.testing import StartResponseMock, create_environ

from inference_api.app import create_app


class SlowBody(io.BytesIO):
    """A body that arrives bit by bit; `client.services` says what is watched meanwhile."""

    def __init__(self, body: bytes, client: Client) -> None:
        super().__init__(body)
        self._client = client
        self.watched: list[Any] = []

    def read(self, size: int | None = -1) -> bytes:
        self.watched += self._client.services.watchdog.in_flight
        return super().read(size)


@pytest.mark.parametrize(
    ("path", "body", "media_type"),
    [
        ("/v2/models/scale/infer", b"{", "application/json"),
        ("/v1/models/scale:predict", b"{", "application/json"),
        ("/v1/models/colour:predict", b"\xff\xd8", "image/jpeg"),
    ],
)
def test_a_slow_client_is_no_hung_inference(path: str, body: bytes, media_type: str, client: Client) -> None:
    """While a body is read nothing is watched: its worker would be replaced for what a client does."""
    slow = SlowBody(body, client)
    environ = create_environ(
        path, method="POST", headers={"Content-Type": media_type, "Content-Length": str(len(body))}
    )
    start_response = StartResponseMock()
    b"".join(create_app(client.services)(environ | {"wsgi.input": slow}, start_response))
    assert start_response.status == "400 Bad Request"
    assert slow.tell() == len(body)
    assert slow.watched == []
