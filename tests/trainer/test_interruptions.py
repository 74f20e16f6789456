"""What a training does on a full disk, and with corrupt checkpoints."""

import errno
import json

import pytest
from safetensors import SafetensorError

from flows.erased_prompts import cut_short
from stages.errors import WorkspaceError
from trainer.checkpoints import (
    corruption_of,
    folder_of,
    last_complete,
    mark_complete,
    run_folder,
)
from trainer.disk_space import disk_space_explained
from trainer.dpo import train_dpo
from trainer.dpo_settings import DPOTrainingConfig
from trainer.stopping import StoppingConfig

QUICK = DPOTrainingConfig(
    learning_rate=1e-3,
    batch_size=4,
    max_length_tokens=64,
    checkpoint_every_steps=1,
    stopping=StoppingConfig(kl_samples=0),
    threads=1,
)
"""4 steps on the 16 pairs, a checkpoint at each; the last two are kept."""


class Killed(BaseException):
    """Stands for a kill."""


def run(rows, model, folder, kill_at=None):
    def progress(step, _):
        steps.append(step)
        if step == kill_at:
            raise Killed

    steps = []
    folders = folder / "model", folder / "checkpoints"
    return train_dpo(rows, model, model, QUICK, *folders, progress), steps


@pytest.fixture(scope="module")
def uninterrupted(clear_pairs, model_folder, tmp_path_factory):
    return run(clear_pairs, model_folder, tmp_path_factory.mktemp("whole"))[0]


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_corrupt_checkpoint_is_passed_over_and_said(
    clear_pairs, model_folder, uninterrupted, tmp_path
):
    with pytest.raises(Killed):
        run(clear_pairs, model_folder, tmp_path, kill_at=4)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    flip_a_byte(folder / "checkpoint-3" / "optimizer.pt")
    resumed, steps = run(clear_pairs, model_folder, tmp_path)
    assert steps == [2, 3, 4]
    assert resumed.weights_hash == uninterrupted.weights_hash
    manifest = json.loads((resumed.model_path / "manifest.json").read_text())
    assert manifest["warnings"] == [
        "checkpoint-3 was corrupt (optimizer.pt): training went on from checkpoint-2"
    ]


def test_without_a_sound_checkpoint_training_begins_anew(tmp_path):
    """Cut off in writing is no corruption, and is not said."""
    folder = folder_of(tmp_path, "x")
    for step in (3, 6, 8):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        if step != 8:
            mark_complete(checkpoint)
    flip_a_byte(folder / "checkpoint-3" / "model.safetensors")
    (folder / "checkpoint-6" / "complete.json").write_text("{")
    with run_folder(tmp_path, "x", {}) as folder:
        assert not list(folder.glob("checkpoint-*"))
        (said,) = corruption_of(folder)
    assert said == (
        "checkpoint-3 was corrupt (model.safetensors), checkpoint-6 was corrupt (complete.json): "
        "training began anew"
    )


def test_what_is_under_way_was_not_cut_short(tmp_path):
    left = folder_of(tmp_path, "left")
    left.mkdir()
    with run_folder(tmp_path, "x", {}):
        assert cut_short(tmp_path) == [left]
    assert cut_short(tmp_path) == [left]
    assert cut_short(tmp_path / "nowhere") == []
    assert not list(left.iterdir()), "looking writes nothing"


FULL = {
    "python": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    # As safetensors 0.6 and torch 2.13 raise on a full tmpfs.
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
    "torch": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_says_what_to_do(error, tmp_path):
    with (
        pytest.raises(WorkspaceError) as raised,
        disk_space_explained(tmp_path / "not there yet", tmp_path / "model", 2**30),
    ):
        raise error
    message = str(raised.value)
    assert f"a checkpoint or the model could not be written: {error}" in message
    assert "Expected room for 4 GiB or more" in message
    assert message.count("GiB free)") == 2
    assert "goes on from its last whole checkpoint" in message


def test_a_disk_that_fills_up_in_training_costs_no_checkpoint(
    clear_pairs, model_folder, uninterrupted, tmp_path, monkeypatch
):
    """Full at the third checkpoint; then at the end, when there was room for the third."""
    import torch

    save = torch.save

    def full_at_the_third(*arguments, **named):
        if "checkpoint-3" in str(arguments[1]):
            raise FULL["torch"]
        save(*arguments, **named)

    def full_at_the_end(*_, **__):
        raise FULL["python"]

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full_at_the_third)
        with pytest.raises(WorkspaceError, match="could not be written"):
            run(clear_pairs, model_folder, tmp_path)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert last_complete(folder).name == "checkpoint-2"
    with monkeypatch.context() as patched:
        patched.setattr("trainer.model_folder.weights_hash", full_at_the_end)
        with pytest.raises(WorkspaceError, match="No space left on device"):
            run(clear_pairs, model_folder, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoints", "reference-log-probs"}, "no remainder is in the way"
    result, steps = run(clear_pairs, model_folder, tmp_path)
    assert steps == [4]
    assert result.weights_hash == uninterrupted.weights_hash


def test_other_errors_are_left_alone(tmp_path):
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("shape mismatch")):
        with pytest.raises(type(error)) as raised, disk_space_explained(tmp_path, tmp_path, 4):
            raise error
        assert raised.value is error
