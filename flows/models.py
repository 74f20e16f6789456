"""Policies by name: the bundled model, a folder, a hub id, or what a gate promoted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.configuration import BUNDLED_MODEL
from lineage.workspace import commit_json
from stages.content_ids import folder_hash, weights_hash
from stages.errors import MissingFileError, ModelError

if TYPE_CHECKING:
    from lineage.workspace import Workspace

BUNDLED = "bundled"


@dataclass(frozen=True)
class Policy:
    """A model folder and the hashes that name its content."""

    name: str
    folder: Path
    weights_hash: str
    fingerprint: str
    """Hash of weights, tokenizer and chat template."""

    @property
    def identity(self) -> dict[str, str]:
        """What of the policy decides its completions' rows: part of a stage's settings."""
        return {"name": self.name, "fingerprint": self.fingerprint}


def find_policy(model: str) -> Policy:
    """Return the policy that ``model`` names: `bundled`, a folder, or a hub id.

    Raises:
        MissingFileError: no such folder, and the hub has no such model or cannot be reached.
        ModelError: the folder holds no model.
    """
    if model == BUNDLED:
        return policy_in(BUNDLED_MODEL, BUNDLED)
    folder = Path(model)
    if folder.is_dir():
        return policy_in(folder, folder.resolve().name)
    return policy_in(_downloaded(model), model)


def policy_in(folder: Path, name: str) -> Policy:
    """Return the policy in a local folder.

    Raises:
        ModelError: it holds no config.json or no weights.
    """
    try:
        return Policy(name, folder, weights_hash(folder), folder_hash(folder))
    except FileNotFoundError as error:
        raise ModelError(
            str(error), expected="a Hugging Face model folder", where=str(folder)
        ) from None


@dataclass(frozen=True)
class Promoted:
    """What the gate promoted last under a configuration's name."""

    policy: Policy
    average: Path | None
    """The folder of the reference's moving average, where there is one."""


def find_promoted(workspace: Workspace, name: str) -> Promoted | None:
    """Return what was promoted last under ``name``; None if nothing was.

    Raises:
        MissingFileError: its folder is gone.
        ModelError: the folder holds another model than was promoted.
    """
    path = promoted_path(workspace, name)
    if not path.is_file():
        return None
    pointer = json.loads(path.read_bytes())
    folder = workspace.root / pointer["path"]
    remedy = f"restore it, or delete {path} to start from `policy` again"
    if not folder.is_dir():
        raise MissingFileError(
            f"the promoted policy {pointer['round_id']} is gone",
            expected=f"a model folder {folder}",
            where=str(path),
            remedy=remedy,
        )
    policy = policy_in(folder, folder.name)
    if policy.weights_hash != pointer["weights_hash"]:
        raise ModelError(
            f"the promoted policy's weights hash is {policy.weights_hash}",
            expected=f"{pointer['weights_hash']}, which the gate of {pointer['round_id']} promoted",
            where=str(folder),
            remedy=remedy,
        )
    average = pointer.get("average")
    return Promoted(policy, workspace.root / average if average else None)


def write_promoted(workspace: Workspace, name: str, promoted: Promoted) -> None:
    """Make a round's policy the one that ``name`` promoted last."""
    pointer = {
        "round_id": promoted.policy.name,
        "weights_hash": promoted.policy.weights_hash,
        "path": workspace.relative(promoted.policy.folder),
        "average": workspace.relative(promoted.average) if promoted.average else None,
    }
    commit_json(promoted_path(workspace, name), pointer)


def promoted_path(workspace: Workspace, name: str) -> Path:
    """Return where it is noted what ``name`` promoted last."""
    return workspace.models / f"{name}.promoted.json"


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFileError(
            f"model {model!r} is neither a folder nor can it be downloaded: {error}",
            expected="`bundled`, a model folder, or a hub id that is cached or reachable",
            where=f"working directory {Path.cwd()}",
            remedy="correct `policy` in the configuration",
        ) from None
