"""Argilla's own client reads the exported records and settings; the server behind it is made up."""

import json
import re
import uuid

import httpx
import polars as pl
import pytest

from stages.argilla_records import argilla_settings
from stages.errors import DataError
from stages.export_formats import require_allowed
from tests.stages.test_export_formats import TEXTS, asking, preference
from tests.stages.written import companion, encode


def stored(body):
    """Return a body with what the server adds."""
    times = dict.fromkeys(("inserted_at", "updated_at"), "2026-01-02T03:04:05")
    return {"id": str(uuid.uuid4()), **times, **body}


class Server:
    """What Argilla's API keeps: the objects posted to each collection, and the records."""

    def __init__(self):
        self.kept, self.records = {"workspaces": [stored({"name": "w"})]}, []

    def __call__(self, request):
        path = request.url.path.removeprefix("/api/v1/")
        body = json.loads(request.content or "{}")
        kind = path.split("/")[-1]
        if path == "me":
            return self.answer(username="reviewer", role="owner")
        if kind == "bulk":
            self.records += body["items"]
            return self.answer(items=[{**item, **stored({})} for item in body["items"]])
        if request.method == "POST":
            self.kept.setdefault(kind, []).append({**body, **stored({})})
            return self.answer(**self.kept[kind][-1])
        if re.match(r"datasets/[0-9a-f-]{36}(/publish)?$", path):
            return self.answer(**self.kept["datasets"][0])
        return self.answer(items=self.kept.get(kind, []))

    def answer(self, **body):
        return httpx.Response(200, json=stored(body))


@pytest.fixture
def argilla():
    rg = pytest.importorskip("argilla", reason="argilla is of the test extra")
    server = Server()
    mounts = {"all://": httpx.MockTransport(server)}
    client = rg.Argilla("http://argilla", "key", mounts=mounts)
    return rg, client, server


def uploaded(argilla, tmp_path, rows):
    """Return the settings and the records that Argilla's client makes of the files and sends."""
    rg, client, server = argilla
    settings, records = tmp_path / "argilla_settings.json", tmp_path / "train.argilla.json"
    settings.write_bytes(companion("argilla_json"))
    records.write_bytes(encode(rows, "argilla_json"))
    dataset = rg.Dataset("pairs", "w", rg.Settings.from_json(settings), client=client)
    dataset.create()
    dataset.records.from_json(records)
    return server.kept, server.records


def test_argillas_client_makes_the_dataset_and_sends_every_text(argilla, tmp_path):
    texts = [text.replace("\0", "") for text in TEXTS]
    rows = preference(texts)
    require_allowed(rows, "argilla_json")
    kept, records = uploaded(argilla, tmp_path, rows)
    assert [(field["name"], field["settings"]["type"]) for field in kept["fields"]] == [
        ("prompt", "chat"),
        ("response_1", "text"),
        ("response_2", "text"),
    ]
    (question,) = kept["questions"]
    options = [option["value"] for option in question["settings"]["options"]]
    assert (question["name"], options) == ("preference", ["response_1", "response_2", "tie"])
    assert [item["name"] for item in kept["metadata-properties"]] == [
        "chosen_score",
        "rejected_score",
        "margin",
    ]
    for text, pair, record in zip(texts, rows.to_dicts(), records, strict=True):
        (suggestion,) = record["suggestions"]
        label = suggestion["value"]
        other = {"response_1": "response_2", "response_2": "response_1"}[label]
        assert record["external_id"] == pair["pair_id"]
        assert record["fields"]["prompt"] == pair["prompt"]
        assert record["fields"][label] == f"chosen: {text}"
        assert record["fields"][other] == f"rejected: {text}"
        assert suggestion["agent"] == "x"
        assert question["id"] == suggestion["question_id"]
    assert {record["suggestions"][0]["value"] for record in records} == {"response_1", "response_2"}


def test_the_place_of_the_chosen_answer_is_the_pair_ids():
    rows = pl.concat(asking("user", pair_id=f"pair_{digit}") for digit in "0123456789abcdef")
    records = json.loads(encode(rows, "argilla_json"))
    first = [r["suggestions"]["preference"]["value"] == "response_1" for r in records]
    assert first == [True, False] * 8
    assert [r["fields"]["response_1"] == "Yes." for r in records] == first


def test_the_confidence_is_the_suggestions_score(argilla, tmp_path):
    rows = pl.concat([asking("user", pair_id=f"pair_{i}") for i in range(2)])
    rows = rows.with_columns(confidence=pl.Series([0.75, None]))
    _, records = uploaded(argilla, tmp_path, rows)
    assert [record["suggestions"][0]["score"] for record in records] == [0.75, None]


def test_models_texts_are_not_rendered():
    fields = json.loads(argilla_settings())["fields"]
    assert [field["settings"]["use_markdown"] for field in fields] == [False] * 3


@pytest.mark.parametrize(("side", "place"), [("chosen", "chosen must"), ("rejected", "rejected")])
def test_a_nul_in_a_completion_is_refused(side, place):
    with pytest.raises(DataError, match=f"{place}.* NUL"):
        require_allowed(asking("user", **{side: "a\0b"}), "argilla_json")


def test_a_nul_in_a_prompt_is_refused():
    rows = preference(["a\0b"])
    plain = rows.with_columns(chosen="prompt", rejected="prompt")
    asked = plain.with_columns(
        pl.lit([{"role": "assistant", "content": "x"}]).alias(side)
        for side in ("chosen", "rejected")
    )
    with pytest.raises(DataError, match=r"every message of the prompt .* NUL"):
        require_allowed(asked, "argilla_json")
