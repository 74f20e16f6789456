"""Policies that a server can have as adapters over a base, in place of their merged weights.

A series of rounds that trains adapters then keeps one server: what it promotes is loaded into it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.adapter_requests import Adapter
from flows.models import Policy, find_policy
from trainer.adapter_chain import adapter_step, write_combined
from trainer.adapters import FOLDER
from trainer.model_folder import MANIFEST, manifest_in

if TYPE_CHECKING:
    from trainer.adapter_chain import AdapterStep


@dataclass(frozen=True)
class AdaptedPolicy:
    """A policy as its server has it: a base, and the adapters of one training or several."""

    policy: Policy
    base: Policy
    steps: tuple[AdapterStep, ...]
    """The trainings since the base, the oldest first."""

    @property
    def served_name(self) -> str:
        """What requests call it: policies in two folders of one name are two."""
        return f"{self.policy.name}-{self.policy.weights_hash}"

    @property
    def identity(self) -> dict[str, Any]:
        """What is recorded of it beside the policy's own hash: rounding makes it another model."""
        ranks = [step.rank for step in self.steps]
        return {"base_weights_hash": self.base.weights_hash, "ranks": ranks}

    def adapter(self) -> Adapter:
        """Return the adapters over the base; those of several trainings are written as one."""
        folder = self.steps[-1].model_folder
        if len(self.steps) == 1:
            return Adapter(self.served_name, folder / FOLDER)
        combined = folder / f"{FOLDER}_over_{self.base.weights_hash}"
        write_combined([step.model_folder / FOLDER for step in self.steps], combined)
        return Adapter(self.served_name, combined)


def adapted(policy: Policy, first: str, maximum_rank: int) -> AdaptedPolicy | None:
    """Return ``policy`` as adapters, or None where only its merged weights will do.

    That goes by the policy and ``maximum_rank``, and not by what a server has just now. The ranks
    of the trainings since ``first``, a model as configurations name it, are added up; where one
    would exceed the maximum, its merged weights are the base of those after it.
    """
    own = adapter_step(policy.folder)
    if own is None or own.weights_hash != policy.weights_hash:
        return None
    origin = _found(first)
    folders = {**_trained_beside(policy), origin.weights_hash: origin.folder}
    over: list[AdapterStep] = []
    for step in _trainings(own, folders, origin):
        over.append(step)
        if sum(one.rank for one in over) > maximum_rank:
            over = []
    if not over:
        return None
    base_hash = over[0].base_weights_hash
    same = base_hash == origin.weights_hash
    base = origin if same else _found(str(folders[base_hash]))
    return AdaptedPolicy(policy, base, tuple(over)) if base.weights_hash == base_hash else None


def _trainings(last: AdapterStep, folders: dict[str, Path], origin: Policy) -> list[AdapterStep]:
    """Return the trainings up to ``last``: since ``origin``, or the first whose base is there."""
    steps: list[AdapterStep] = []
    step: AdapterStep | None = last
    ends = {origin.weights_hash}
    while step and step.weights_hash not in ends and step.base_weights_hash in folders:
        steps.append(step)
        ends.add(step.weights_hash)  # a training that changed nothing is its own base
        step = adapter_step(folders[step.base_weights_hash])
    return steps[::-1]


def _trained_beside(policy: Policy) -> dict[str, Path]:
    """Return the folders of the models that were trained into the policy's, by their hash."""
    folders = sorted(path.parent for path in policy.folder.parent.glob(f"*/{MANIFEST}"))
    hashes = [manifest_in(folder).get("weights_hash", "") for folder in folders]
    return dict(zip(hashes, folders, strict=True))


def _found(model: str) -> Policy:
    """Return what `find_policy` does; files that are as they were are not hashed again."""
    folder = Path(model)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    stats = [path.stat() for path in files]
    return _found_as(model, tuple((each.st_mtime_ns, each.st_size) for each in stats))


@functools.lru_cache(maxsize=8)
def _found_as(model: str, _files: tuple[tuple[int, int], ...]) -> Policy:
    return find_policy(model)
