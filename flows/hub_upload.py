"""An exported dataset folder pushed to the Hugging Face hub: only ever because a user asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stages.errors import ConfigError, DataError, EndpointError

if TYPE_CHECKING:
    from pathlib import Path

    from huggingface_hub import HfApi

TOKEN = "HF_TOKEN"  # noqa: S105 - the variable's name


def push_dataset(folder: Path, repository: str, *, private: bool) -> str:
    """Upload ``folder`` to the dataset ``repository``, made if need be, and return its URL.

    The token is that of the environment variable HF_TOKEN, never one that a login left behind.

    Raises:
        ConfigError: there is no token, or the repository's name is none.
        DataError: ``private`` is asked for and the repository is there and public.
        EndpointError: the hub can't be reached, or refuses.
    """
    token = os.environ.get(TOKEN)
    if not token:
        raise ConfigError(
            f"no {TOKEN} in the environment",
            expected="a token of huggingface.co that may write",
            remedy=f"make one under Settings, Access Tokens, and export it as {TOKEN}",
        )
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return _push(HfApi(token=token), folder, repository, private=private)
    except HFValidationError as error:
        raise ConfigError(f"no name of a repository: {error}", expected="OWNER/NAME") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        told = " ".join(str(error).split()).replace(token, "***")
        raise EndpointError(
            f"the hub did not take the dataset: {told}",
            where=repository,
            remedy=f"check that {TOKEN} may write to {repository!r}, then run the command again",
        ) from None


def _push(hub: HfApi, folder: Path, repository: str, *, private: bool) -> str:
    url = str(hub.create_repo(repository, repo_type="dataset", private=private, exist_ok=True))
    if private and not hub.dataset_info(repository).private:
        raise DataError(
            f"the dataset {repository!r} is public",
            expected="a private one: nothing was uploaded",
            where=url,
            remedy="push with --public, to another name, or make it private on the hub first",
        )
    hub.upload_folder(
        repo_id=repository,
        repo_type="dataset",
        folder_path=folder,
        commit_message="Preference pairs by prefmill",
    )
    return url
