"""How a managed vLLM server is started; `flows/vllm_server.py` does it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic
import pydantic_core

from stages.configuration import OPERATIONAL, Config

OWN_OPTIONS = (
    "model",
    "served_model_name",
    "host",
    "port",
    "uds",
    "runner",
    "api_key",
    "root_path",
)
"""Server options that prefmill sets itself."""


def _option_name(name: str) -> str:
    """Return an option's name in snake case, as `max_model_len` for `--max-model-len`."""
    name = name.replace("-", "_")
    if name in OWN_OPTIONS:
        raise pydantic_core.PydanticCustomError("own_option", "prefmill sets this option itself")
    return name


OptionName = Annotated[
    str, pydantic.Field(pattern=r"^[a-z][a-z0-9_-]*$"), pydantic.AfterValidator(_option_name)
]


class VllmServerConfig(Config):
    """A managed vLLM server: where vLLM is installed and how it runs.

    Options such as a quantization decide what comes out, so they name an output; the rest doesn't.
    """

    python: Annotated[Path | None, OPERATIONAL] = None
    """Interpreter of the environment that holds vLLM; null is `.venv-vllm/bin/python`."""
    options: dict[OptionName, bool | int | float | str | None] = pydantic.Field(default={})
    """vLLM's server options, `max_model_len: 4096` for `--max-model-len=4096`. True gives a bare
    flag, false its `--no-` form; null takes away a default of prefmill's own."""
    devices: Annotated[tuple[pydantic.NonNegativeInt, ...], OPERATIONAL] = ()
    """The server's GPUs, as CUDA_VISIBLE_DEVICES numbers them; empty: those of this process."""
    start_timeout_seconds: Annotated[pydantic.PositiveFloat, OPERATIONAL] = 900
    """Loading, compiling and warming up a large model takes minutes."""
