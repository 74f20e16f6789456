"""Whether the servers are there, take the key and serve the model, before anything is paid."""

from __future__ import annotations

import socket
from typing import Any, NamedTuple

from stages.answer_text import one_line
from stages.endpoint_answers import MESSAGE_LENGTH, WRONG_KEY, may_pass
from stages.errors import EndpointError, UnreachableError, nearest
from stages.secret_values import HIDDEN

CHECK_SECONDS = 30.0
CONNECT_SECONDS = 10.0
NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
"""How a name server says that a name does not exist; EAI_AGAIN: that it can't be asked now."""


class ServedModel(NamedTuple):
    """A model as its servers list it."""

    name: str
    context_tokens: int | None
    """The shortest context of the servers; None: none says (vLLM does)."""


def served_model(
    base_urls: tuple[str, ...], api_key: str | None, model: str, *, wait_for_name: bool = False
) -> ServedModel:
    """Return the model as it is served, by one free request to each server.

    Raises:
        UnreachableError: no server can be reached now.
        EndpointError: wrong key, a model that a server doesn't serve, or no server has a name that
            exists; to ``wait_for_name``, that is an UnreachableError.
    """
    import openai

    served, unreachable, misnamed = [], [], 0
    for url in base_urls:
        try:
            served.append(_served(url, api_key, model))
        except openai.APIConnectionError as error:
            cause = one_line(str(error.__cause__ or error), MESSAGE_LENGTH)
            unreachable.append(f"{url}: {cause}")
            misnamed += _is_misnamed(error)
        except openai.APIError as error:
            refused = _refusal(error, url, api_key)
            if not (isinstance(error, openai.APIStatusError) and may_pass(error.status_code)):
                raise refused from None
            unreachable.append(f"{url}: {refused.found}")
    if not served and misnamed == len(base_urls) and not wait_for_name:
        raise EndpointError(
            f"no server has such a name ({'; '.join(unreachable)})",
            expected="the address of an OpenAI-compatible server",
            remedy="correct base_urls; or set wait_for_name where the name is still to come",
        )
    if not served:
        raise UnreachableError(
            f"no server can be reached ({'; '.join(unreachable)})",
            expected="a running OpenAI-compatible server",
            remedy="start it, or correct base_urls",
        )
    contexts = [one.context_tokens for one in served if one.context_tokens is not None]
    return ServedModel(model, min(contexts, default=None))


def _served(url: str, api_key: str | None, model: str) -> ServedModel:
    import openai

    timeout = openai.Timeout(CHECK_SECONDS, connect=CONNECT_SECONDS)
    client = openai.OpenAI(base_url=url, api_key=api_key or "none", timeout=timeout, max_retries=1)
    with client:
        models = {entry.id: entry for entry in client.models.list()}
    if model not in models:
        known = sorted(models)
        raise EndpointError(
            f"{url} does not serve {model!r}{nearest(model, known)}",
            expected=f"one of: {', '.join(known[:10])}" if known else "a model to be served",
            remedy="correct the model's name",
        )
    context = getattr(models[model], "max_model_len", None)
    return ServedModel(model, context if isinstance(context, int) else None)


def _is_misnamed(error: BaseException) -> bool:
    """Return whether a connection failed since its server's name does not exist."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return cause.errno in NO_SUCH_NAME
        cause = cause.__cause__ or cause.__context__
    return False


def _refusal(error: Any, url: str, api_key: str | None) -> EndpointError:
    """Return our error for one of the `openai` package's, without the key if it repeats that."""
    told = str(error).replace(api_key, HIDDEN) if api_key else str(error)
    status = getattr(error, "status_code", None)
    what = "the key is refused" if status in WRONG_KEY else "the list of models is refused"
    remedy = (
        "set api_key_variable, and the right key in that variable"
        if status in WRONG_KEY
        else "correct base_urls; they usually end in /v1"
    )
    return EndpointError(
        f"{what} ({one_line(told, MESSAGE_LENGTH)})", where=f"{url}/models", remedy=remedy
    )
