"""Files of a model on the HuggingFace hub, or of the copy that an earlier call left on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError

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


def _newest_commit(repo_id: str) -> str:
    """Ask once, in a thread that is left alone when the time is over. Raises: HubError."""
    answers: SimpleQueue[str | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(str(HfApi().model_info(repo_id, timeout=LIMIT_S).sha))
        except Exception as error:  # of the name, the connection or the hub: all end in one line
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=LIMIT_S)
    except Empty:
        raise HubError(f"no answer within {LIMIT_S} s") from None
    if isinstance(answer, Exception):
        raise HubError(str(answer)) from answer
    return answer


def _unavailable(repo_id: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"{repo_id}: no such path, and the HuggingFace hub does not give such a model (no such name, or offline; "
        f"give a folder that holds config.json and model.safetensors instead): {reason}"
    )
