"""On a real server: what a run tells when it ends reaches a webhook, with no text of the data."""

from __future__ import annotations

import email
import email.policy
import json
import re
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import polars as pl
import pytest

from flows import alerts
from flows.deployments import HOOKS
from flows.prefect_requests import asked
from lineage.workspace import Workspace
from stages.errors import ConfigError, DataError, ValidationError
from tests.flows.test_deployment import ROOT

SECONDS = 60


@pytest.fixture
def receiver():
    """A webhook: the bodies that it was sent, and its address."""
    bodies: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.headers["Content-Type"].startswith("application/json")
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")  # as Slack answers

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield bodies, f"http://127.0.0.1:{server.server_port}/hook/s3cret"
        server.shutdown()


@pytest.fixture
def mail_server():
    """A mail server: the mails that it was sent, and its address."""
    mails: list[email.message.EmailMessage] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 here\r\n")
            while verb := self.rfile.readline()[:4].upper():
                self.wfile.write({b"DATA": b"354 go on\r\n"}.get(verb, b"250 ok\r\n"))
                if verb == b"DATA":
                    text = b"".join(iter(self.rfile.readline, b".\r\n"))
                    mails.append(email.message_from_bytes(text, policy=email.policy.default))
                    self.wfile.write(b"250 taken\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield mails, f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def gates(promoted):
    """What the stage `gate` of a run made."""
    rows = {
        "rounds": pl.DataFrame({"promoted": [promoted]}),
        "gates": pl.DataFrame(
            {
                "criterion": ["kl_nats", "success"],
                "value": [3.25, 0.5],
                "limit": [2.0, 0.25],
                "passed": [False, True],
            }
        ),
    }
    return lambda _workspace, _run, _stage, table: rows[table]


BROKEN = ValidationError("judgments: 1 of 9 rows (rows secret-id)", where="judge, table judgments")


@pytest.mark.parametrize(
    ("promoted", "error", "event", "sentence"),
    [
        (False, None, alerts.HELD, "r: the gate held the model: kl_nats is 3.25, limit 2"),
        (
            True,
            None,
            alerts.PROMOTED,
            "r: the gate promoted the model by force, though kl_nats is 3.25, limit 2",
        ),
        (
            False,
            BROKEN,
            alerts.BROKEN,
            "r stopped: a check that must hold is broken at judge, table judgments",
        ),
        (False, DataError("no pairs"), None, None),
    ],
)
def test_how_a_run_ended_is_an_event(monkeypatch, tmp_path, promoted, error, event, sentence):
    sent = []
    monkeypatch.setattr(alerts, "send_event", lambda name, *rest: sent.append((name, rest[-1])))
    monkeypatch.setattr(alerts, "read_output", gates(promoted))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    alerts.tell_ending(Workspace(tmp_path), "r", error)
    assert sent == [], "nobody listens"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    alerts.tell_ending(Workspace(tmp_path), "r", error)
    assert sent == ([(event, sentence)] if event else [])


def test_alerts_reach_a_webhook(prefect_server, receiver, tmp_path):
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    bodies, address = receiver
    alerts.set_up(prefect_server, "http://127.0.0.1:9/old")
    alerts.set_up(prefect_server, address)  # again: it is brought up to date, not made twice
    made = {a["name"]: a for a in asked(prefect_server, "automations/filter", {})}
    assert len(made) == 2
    alerts.set_up(prefect_server)  # and kept, with what it waits for
    assert {a["name"]: a for a in asked(prefect_server, "automations/filter", {})} == made
    blocks = asked(prefect_server, "block_documents/filter", {"include_secrets": False})
    assert "s3cret" not in json.dumps(blocks)

    @flow(name="nightly", **HOOKS)
    def fails():
        raise DataError("the text of a prompt")

    @flow(name="well", **HOOKS)
    def ends_well():
        return None

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        alerts.send_event(alerts.HELD, tmp_path, "small-round1", 'held: "kl" <b> {{ 1 }}')
        ends_well()  # nobody is told
        with pytest.raises(DataError):
            fails()
    deadline = time.monotonic() + SECONDS
    while len(bodies) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    texts = sorted(body.pop("text") for body in bodies)
    assert bodies == [{}, {}]
    assert texts[0].startswith("prefmill.flow-run.failed: the run ")
    assert texts[0].endswith(" of nightly failed")
    assert texts[1] == 'prefmill.gate.held: held: "kl" <b> {{ 1 }}'


def test_the_automation_of_the_documents_sends_mail(prefect_server, mail_server, tmp_path):
    """The server takes the address from a block that is made for Slack and takes any."""
    from prefect.blocks.notifications import SlackWebhook
    from prefect.settings import PREFECT_API_URL, temporary_settings

    text = (ROOT / "docs" / "operations.md").read_text()
    (trigger,) = map(json.loads, re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    (body,) = re.findall(r"`({{ event\.event }}.*?)`", text)
    mails, place = mail_server
    address = f"mailto://{place}?from=prefmill@example.org&to=me@example.org&format=text"
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        block = SlackWebhook(url=f"{address}&mode=insecure").save("mail")
        sending = {"type": "send-notification", "block_document_id": str(block)}
        action = {**sending, "subject": "prefmill", "body": body}
        automation = {"name": "mail", "trigger": trigger, "actions": [action]}
        asked(prefect_server, "automations/", automation)
        deadline = time.monotonic() + SECONDS
        while not mails and time.monotonic() < deadline:
            # Again and again: an event before the server has taken the automation up finds none.
            alerts.send_event(alerts.BROKEN, tmp_path, "small", 'broken: "id" <b> {{ 1 }}')
            time.sleep(1)
    assert (mails[0]["To"], mails[0]["Subject"]) == ("me@example.org", "prefmill")
    said = mails[0].get_content().strip()
    assert said == 'prefmill.validation.failed: broken: "id" <b> {{ 1 }}'


def test_what_the_slack_block_sends(receiver, monkeypatch):
    from apprise.plugins.slack import NotifySlack
    from prefect.blocks.notifications import SlackWebhook

    bodies, address = receiver
    monkeypatch.setattr(NotifySlack, "webhook_url", address)
    block = SlackWebhook(url="https://hooks.slack.com/services/T0AB/B0CD/e5f6g7h8")
    with block.raise_on_failure():
        block.notify("prefmill.gate.held: r: kl_nats is 3.25, limit 2", subject="prefmill")
    ((sent,),) = [body["attachments"] for body in bodies]
    assert (sent["title"], sent["text"]) == (
        "prefmill",
        "prefmill.gate.held: r: kl_nats is 3.25, limit 2",
    )


def test_an_address_that_is_none_is_refused_without_repeating_it(prefect_server):
    with pytest.raises(ConfigError, match="is no address") as error:
        alerts.set_up(prefect_server, "hooks.example.org/s3cret")
    assert "s3cret" not in str(error.value)
