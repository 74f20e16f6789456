"""Requests to Prefect's server: asked again while it is busy, and no longer."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows import prefect_requests
from flows.prefect_requests import asked
from stages.errors import EndpointError


@pytest.fixture
def server(monkeypatch):
    """A server: the statuses that it will answer with, and its address."""
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(statuses.pop(0))
            self.end_headers()
            self.wfile.write(b'{"id": 7}')

        def log_message(self, *_):
            pass

    monkeypatch.setattr(prefect_requests, "BUSY_WAITS_SECONDS", (0.0, 0.0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield statuses, f"http://127.0.0.1:{listening.server_address[1]}/api"
        listening.shutdown()


def test_a_busy_server_is_asked_again(server):
    statuses, url = server
    statuses += [503, 503, 200]
    assert asked(url, "things/", {}) == {"id": 7}
    assert statuses == []


@pytest.mark.parametrize(("answers", "told"), [([503, 503, 503], 503), ([422], 422), ([409], 409)])
def test_what_it_refuses_is_an_error_without_what_was_sent(server, answers, told):
    statuses, url = server
    statuses += answers
    with pytest.raises(EndpointError, match=f"HTTP {told}") as caught:
        asked(url, "things/", {"url": "s3cret"})
    assert "s3cret" not in str(caught.value)
    assert statuses == []


def test_what_may_exist_is_not_made_twice(server):
    statuses, url = server
    statuses.append(409)
    assert asked(url, "things/", {}, may_exist=True) is None
