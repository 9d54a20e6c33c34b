"""Upload an exported dataset to the Hugging Face Hub. The only module here that writes outside this machine."""

import re
from pathlib import Path
from typing import Any

from cai.errors import DataError

_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")


def push_to_hub(folder: Path, repo: str, private: bool = True, api: Any = None) -> str:
    """Make a dataset repository, private unless told otherwise, upload an export folder to it, and return its address.

    Args:
        folder: what `export` wrote, with its README.md.
        repo: OWNER/NAME.
        private: visibility of a new repository; an existing one keeps its own.
        api: a `huggingface_hub.HfApi`; made here if None.

    Raises:
        DataError: the folder has no card, the name is wrong, or the Hub can't be reached or refuses.
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
        return "Log in with a token that may write: hf auth login (or set HF_TOKEN), and check that you may write to this owner."
    if status is None:
        return "The Hub can't be reached: check the network and that HF_HUB_OFFLINE is not set. The exported files stay where they are."
    return "The exported files stay where they are; run the same command again later."
