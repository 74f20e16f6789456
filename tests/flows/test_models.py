"""Policies are found by `bundled`, folder or hub id, and named so that a person knows them."""

from __future__ import annotations

import shutil

import pytest

from flows import models
from flows.configuration import BUNDLED_MODEL
from stages.errors import MissingFileError, ModelError


def test_the_bundled_model_by_name_and_by_folder_is_the_same_content(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(BUNDLED_MODEL, copy)
    bundled, copied = models.find_policy("bundled"), models.find_policy(str(copy))
    assert (bundled.name, copied.name) == ("bundled", "copy")
    assert bundled.weights_hash == copied.weights_hash
    assert bundled.fingerprint == copied.fingerprint


def test_another_template_is_another_fingerprint_with_the_same_weights(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(BUNDLED_MODEL, copy)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    bundled, changed = models.find_policy("bundled"), models.find_policy(str(copy))
    assert bundled.weights_hash == changed.weights_hash
    assert bundled.fingerprint != changed.fingerprint


def test_a_hub_model_keeps_its_id_as_name(monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(BUNDLED_MODEL))
    assert models.find_policy("someone/some-model").name == "someone/some-model"


def test_a_model_that_is_nowhere_and_a_folder_without_one(tmp_path):
    with pytest.raises(MissingFileError, match="neither a folder nor can it be downloaded"):
        models.find_policy("no/such-model")
    with pytest.raises(ModelError, match=r"no config\.json"):
        models.find_policy(str(tmp_path))
