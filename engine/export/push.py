"""Upload of an exported model to the HuggingFace hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from diveparse.models.weights.hub import first_line, within

LIMIT_S = 8  # for the hub's first answer; looking up its address counts, and has no limit of its own


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
        raise ValueError(f"cannot upload to {hub_id}: {first_line(error)}") from error


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
        raise ValueError(f"{folder} is whole, but was not uploaded to {hub_id}: {first_line(error)}") from error
    return str(address)
