"""Only new prompts: each is taken once, whatever dies, and a stored run finds its own again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from flows.configuration import resolve
from flows.prompt_choice import (
    content_of,
    nothing_new,
    of_run_to_resume,
    with_runs_to_pass_over,
)
from flows.run_outputs import read_output
from flows.sampling import sample_prompts
from flows.stage_runner import RunContext
from flows.tracked_run import make_run_id, run_record
from lineage.records import read_run, read_stage_runs, write_run
from lineage.workspace import Workspace, stage_record_path
from stages.errors import MissingFileError


@pytest.fixture
def place(tmp_path):
    place = Workspace(tmp_path / "w")
    place.require_writable()
    return place


@pytest.fixture
def night(place, tmp_path):
    """Sample as a refresh does and record how it ended; return the run's id."""

    def run(texts, status="completed", name="nightly", **prompts):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        source = {"kind": "file", "name": "mine", "path": str(path), "skip_bad_rows": True}
        values = {"sources": [source], "only_new": True, **prompts}
        config = resolve({"name": name, "prompts": values}, "here")
        return sampled(place, with_runs_to_pass_over(place, config), status)

    return run


def sampled(place, config, status="completed"):
    content = content_of(place, config)
    run_id = make_run_id("refresh", config, SimpleNamespace(fingerprint="p"), content, 0)
    sample_prompts.fn(RunContext(place, run_id), config)
    write_run(place, replace(run_record(place, run_id, "refresh", config), status=status))
    return run_id


def texts_of(place, run_id):
    prompts = read_output(place, run_id, "prompts", "prompts")
    return {messages[0]["content"] for messages in prompts["messages"].to_list()}


def test_each_night_takes_what_no_completed_night_had(place, night):
    first = night("abc")
    died = night("abcde", status="failed")
    again = night("abcde")
    assert again == died, "started again it goes on with what it had taken"
    assert [texts_of(place, run_id) for run_id in (first, again)] == [set("abc"), set("de")]
    assert texts_of(place, night("abcdef")) == {"f"}
    assert texts_of(place, night("abcdef", name="other")) == set("abcdef")
    assert texts_of(place, night("abcdef", only_new=False)) == set("abcdef")


def test_a_stored_run_finds_its_prompts_again_though_it_has_had_them(place, night):
    night("abc")
    second = night("abcde")
    assert texts_of(place, night("abcde", only_new=False)) == set("abcde")
    stored = resolve(read_run(place, second).config, "stored")
    assert sampled(place, with_runs_to_pass_over(place, stored)) == second


def test_runs_on_the_same_prompts_are_named_once(place, night):
    first = night("abc", maximum_prompts=2)
    night("abc", maximum_prompts=2, seen_in_runs=[first])
    stored = read_run(place, night("abcd")).config["prompts"]
    assert (stored["only_new"], stored["seen_in_runs"][0]) == (False, first)
    assert len(stored["seen_in_runs"]) == 2


def test_nothing_new_is_said_and_no_error(place, night):
    run_id = night("abc")
    config = resolve(read_run(place, run_id).config, "stored")
    assert nothing_new(place, config) == ""
    prompts = config.prompts.model_copy(update={"only_new": True})
    config = with_runs_to_pass_over(place, config.model_copy(update={"prompts": prompts}))
    assert nothing_new(place, config) == "no new prompts: earlier runs have had all 3"


def test_bad_rows_are_kept_in_a_file_and_counted_in_every_run(place, night, capsys):
    for name in ("nightly", "other"):  # the second run reuses what the first made
        assert texts_of(place, night(["a", 7, "b", ""], name=name)) == {"a", "b"}
        told = " ".join(capsys.readouterr().err.split())
        assert "2 bad rows of" in told
        assert "bad_rows" in told
    (path,) = (place.store / "bad_rows").iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["number"], row["text"]) for row in rows] == [
        (2, '{"prompt": 7}'),
        (4, '{"prompt": ""}'),
    ]


def test_a_stored_run_finds_its_prompts_whatever_became_of_their_file(place, night, tmp_path):
    first = night(["What is rust?", "What is salt?"])
    night(["Another file by now"])
    (tmp_path / "prompts.jsonl").unlink()
    stored = read_run(place, first).config
    config = resolve({**stored, "prompts": {**stored["prompts"], "of_run": first}}, "stored")
    assert sampled(place, config) == first
    assert texts_of(place, first) == {"What is rust?", "What is salt?"}


def test_a_run_is_resumed_with_the_prompts_that_it_had_unless_they_are_gone(place, night):
    earlier = night("ab", name="other")
    died = night("abc", status="failed")
    night("xyz", only_new=False)

    def resumed():
        run = read_run(place, died)
        stored = {**run.config["prompts"], **of_run_to_resume(place, run).get("prompts", {})}
        return sampled(place, resolve({**run.config, "prompts": stored}, "stored"), "failed")

    assert resumed() == died
    assert resumed() == died, "again"
    assert read_run(place, died).config["prompts"]["of_run"] is None, "its prompts are its own"
    (key,) = {stage.stage_key for stage in read_stage_runs(place, died)}
    shutil.rmtree(place.parts_folder("prompts", key))
    assert texts_of(place, resumed()) == set("xyz"), "sampled from what is there now"
    run = replace(read_run(place, earlier), run_id="died-before-it-had-any")
    assert of_run_to_resume(place, run) == {}


def test_prompts_that_are_no_longer_stored_are_not_sampled_anew(place, night):
    first = night(["What is rust?"])
    stored = read_run(place, first).config
    config = resolve({**stored, "prompts": {**stored["prompts"], "of_run": first}}, "stored")
    (key,) = {stage.stage_key for stage in read_stage_runs(place, first)}
    stage_record_path(place, key).unlink()
    with pytest.raises(MissingFileError, match=r"the prompts of run nightly-.* are not stored"):
        sampled(place, config)
