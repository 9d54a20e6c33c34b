"""Uploads an exported dataset to the Hugging Face Hub. No other module uploads data."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cai.errors import DataError

_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")


def push_to_hub(
    folder: Path,
    files: Sequence[str],
    repo: str,
    private: bool = True,
    agree: Callable[[str], bool] = lambda preview: True,
    api: Any = None,
) -> str | None:
    """Upload the files of an export to a dataset repository, made if it doesn't exist. Other files of the folder stay here.

    Args:
        folder: folder that `export` wrote, with its README.md.
        files: the files to upload, relative to it.
        repo: OWNER/NAME.
        private: whether a new repository is private; an existing one keeps its visibility.
        agree: is shown what goes where, before anything is sent; False stops the upload.
        api: a `huggingface_hub.HfApi`; None creates one.

    Returns:
        The repository's URL; None where `agree` said no.

    Raises:
        DataError: the files have no card, the name is invalid, or the upload failed.
    """
    if not _REPO.match(repo):
        raise DataError(f"{repo!r}: expected OWNER/NAME, for example my-name/my-preferences")
    if "README.md" not in files:
        raise DataError(f"{folder}: has no README.md (dataset card). Export into it first.")
    import httpx2
    from huggingface_hub import CommitOperationAdd

    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    url = f"https://huggingface.co/datasets/{repo}"
    try:
        public = api.repo_exists(repo, repo_type="dataset") and not api.repo_info(repo, repo_type="dataset").private
        if not agree(_preview(folder, files, url, private, public)):
            return None
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.create_commit(
            repo_id=repo,
            repo_type="dataset",
            commit_message="Upload the export",
            operations=[CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in files],
        )
    except (httpx2.HTTPError, OSError, ValueError) as e:
        raise DataError(f"{repo}: can't upload to the Hub: {type(e).__name__}: {e}\n{_fix(e)}") from e
    return url


def _preview(folder: Path, files: Sequence[str], url: str, private: bool, public: bool) -> str:
    """Say which files go where, and who can read them there."""
    listed = "\n".join(f"  {name}  {(folder / name).stat().st_size:,} bytes" for name in files)
    if public:
        seen = "a PUBLIC repository that is there already: anyone can read it" + (", although --public was not given" if private else "")
    else:
        seen = "private, if it is not there yet" if private else "PUBLIC: anyone can read it"
    return f"{len(files)} files of {folder} go to {url} ({seen}):\n{listed}"


def _fix(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or "token" in str(error).lower():
        return "Log in with a write token: hf auth login (or set HF_TOKEN), and check that you have write access to this owner."
    if status is None:
        return "The Hub can't be reached: check the network and that HF_HUB_OFFLINE is not set. The exported files are kept."
    return "The exported files are kept; run the same command again later."
