"""Upload of an exported model to the HuggingFace hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

LIMIT_S = 8  # for the hub's first answer; looking up its address counts, and has no limit of its own
Answer = TypeVar("Answer")


def require_account(hub_id: str, endpoint: str | None = None) -> None:
    """Ask the hub who we are, so that what stands against an upload is known before the work.

    hub_id: "OWNER/NAME". endpoint: the address of the hub; by default that of HF_ENDPOINT or HuggingFace's own.
    Raises: ValueError, after `LIMIT_S` seconds or less, without a login or the internet, or if there can be no such id.
    """
    try:
        validate_repo_id(hub_id)  # raises ValueError
        if hub_id.count("/") != 1:
            raise ValueError("expected OWNER/NAME")
        within(LIMIT_S, HfApi(endpoint=endpoint).whoami)
    except Exception as error:  # of the name, the connection or the hub: all end in one line
        raise ValueError(f"cannot upload to {hub_id}: {_reason(error)}") from error


def push(folder: Path, hub_id: str, endpoint: str | None = None) -> str:
    """Upload a folder as a model of the hub, which is made if there is none. Returns: its address.

    Raises: ValueError if the hub refuses; the folder stays as it is.
    """
    api = HfApi(endpoint=endpoint)
    try:
        address = api.create_repo(hub_id, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=hub_id, folder_path=folder, repo_type="model", commit_message="Upload a model of diveparse"
        )
    except Exception as error:  # likewise
        raise ValueError(f"{folder} is whole, but was not uploaded to {hub_id}: {_reason(error)}") from error
    return str(address)


def within(limit_s: float, function: Callable[[], Answer]) -> Answer:
    """The answer of a function, or the error that it raises; its thread is left alone when the time is over.

    Raises: TimeoutError after `limit_s` seconds.
    """
    answers: SimpleQueue[Answer | BaseException] = SimpleQueue()

    def call() -> None:
        try:
            answers.put(function())
        except Exception as error:
            answers.put(error)

    Thread(target=call, daemon=True).start()
    try:
        answer = answers.get(timeout=limit_s)
    except Empty:
        raise TimeoutError(f"no answer within {limit_s:g} s") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
