"""Files of a model on the HuggingFace hub, or of the copy that an earlier call left on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError

Answer = TypeVar("Answer")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name
LIMIT_S = 5  # for the hub's first answer; the names of machines are looked up in it too, which has no limit of its own


def fetched(repo_id: str, names: list[str]) -> Path:
    """The folder that holds those files of a model that it has. names: with `*` for any characters.

    Where the hub does not answer, the copy on this machine is all there is.
    Raises: ValueError, after `LIMIT_S` seconds or less, if there is no such model, or no internet and no whole copy.
    """
    try:
        commit = _newest_commit(repo_id)
    except HubError as error:
        try:
            return Path(snapshot_download(repo_id, allow_patterns=names, local_files_only=True))
        except (OSError, HFValidationError):
            raise ValueError(_unavailable(repo_id, error)) from error
    try:
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=names))
    except (OSError, HFValidationError) as error:
        raise ValueError(_unavailable(repo_id, error)) from error


class HubError(OSError):
    """The hub gives no such model, or does not answer."""


def within(limit_s: float, function: Callable[[], Answer]) -> Answer:
    """The answer of a function, or the error that it raises; its thread is left alone when the time is over.

    Raises: TimeoutError after `limit_s` seconds.
    """
    answers: SimpleQueue[Answer | Exception] = SimpleQueue()

    def call() -> None:
        try:
            answers.put(function())
        except Exception as error:  # raised below, in the thread that asked
            answers.put(error)

    Thread(target=call, daemon=True).start()
    try:
        answer = answers.get(timeout=limit_s)
    except Empty:
        raise TimeoutError(f"no answer within {limit_s:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _newest_commit(repo_id: str) -> str:
    """Raises: HubError."""
    try:
        return str(within(LIMIT_S, lambda: HfApi().model_info(repo_id, timeout=LIMIT_S)).sha)
    except Exception as error:  # of the name, the connection or the hub: all end in one line
        raise HubError(str(error)) from error


def _unavailable(repo_id: str, error: Exception) -> str:
    return (
        f"{repo_id}: no such path, and the HuggingFace hub does not give such a model (no such name, or offline; "
        f"give a folder that holds config.json and model.safetensors instead): {first_line(error)}"
    )
