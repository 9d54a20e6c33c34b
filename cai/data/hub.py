"""Uploads an exported dataset to the Hugging Face Hub. No other module uploads data."""

import re
from pathlib import Path
from typing import Any

from cai.errors import DataError

_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")


def push_to_hub(folder: Path, repo: str, private: bool = True, api: Any = None) -> str:
    """Create a dataset repository if it doesn't exist, upload an export folder to it, and return its URL.

    Args:
        folder: folder that `export` wrote, with its README.md.
        repo: OWNER/NAME.
        private: whether a new repository is private; an existing one keeps its visibility.
        api: a `huggingface_hub.HfApi`; None creates one.

    Raises:
        DataError: the folder has no card, the name is invalid, or the upload failed.
    """
    if not _REPO.match(repo):
        raise DataError(f"{repo!r}: expected OWNER/NAME, for example my-name/my-preferences")
    if not (folder / "README.md").is_file():
        raise DataError(f"{folder}: has no README.md (dataset card). Export into it first.")
    import httpx2

    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            folder_path=str(folder),
            repo_id=repo,
            repo_type="dataset",
            commit_message="Upload the export",
            allow_patterns=["README.md", "*.jsonl", "*.parquet", "*.json", "*.xml"],
        )
    except (httpx2.HTTPError, OSError, ValueError) as e:
        raise DataError(f"{repo}: can't upload to the Hub: {type(e).__name__}: {e}\n{_fix(e)}") from e
    return f"https://huggingface.co/datasets/{repo}"


def _fix(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or "token" in str(error).lower():
        return "Log in with a write token: hf auth login (or set HF_TOKEN), and check that you have write access to this owner."
    if status is None:
        return "The Hub can't be reached: check the network and that HF_HUB_OFFLINE is not set. The exported files are kept."
    return "The exported files are kept; run the same command again later."
