"""Who may do what: signed links, and the rule of what each role may request.

A link's token is signed with the workspace's key, so it stays valid when the server is started again. Only revocations are stored.
"""

import fcntl
import hashlib
import secrets
import tempfile
import time
from pathlib import Path
from typing import Literal

import msgspec
from itsdangerous import BadData, URLSafeSerializer

from cai.core.jsonl import append_record, no_link, read_existing, write_text
from cai.core.workspace import Workspace
from cai.errors import DataError, StoreError
from cai.labels.pooling import ADJUDICATOR
from cai.studio.labelling import rater_name

Role = Literal["label", "edit", "admin"]
OWNER_DAYS = 30
"""Days for which the link that `cai studio` prints is valid."""
KEY_BYTES = 32

LABEL = {"GET /", "GET /static/{name}", "GET /label", "GET /label/begin", "GET /label/{queue}"}
LABEL |= {f"POST /label/{{queue}}/{change}" for change in ("next", "answer", "undo")}
"""Requests that every role may make: method and path of the route."""
_DRAFT_CHANGES = ("draft", "principle", "arrange", "restore", "save", "discard", "preview", "compare", "word", "worded")
EDIT = {"POST /constitutions", "POST /jobs/{id}/stop", *(f"POST /constitutions/{{name}}/{change}" for change in _DRAFT_CHANGES)}
"""Changes that `edit` may make, too. It may also make every GET request."""


def may(role: Role, method: str, path: str) -> bool:
    """Return whether a role may make a request. What is not listed needs `edit` to be read, and `admin` to be changed.

    Args:
        role: role of the link.
        method: HTTP method.
        path: path as the route declares it; empty if no route matches.

    >>> may("label", "GET", "/label/{queue}"), may("label", "GET", "/new"), may("edit", "GET", "/new"), may("edit", "POST", "/new")
    (True, False, True, False)
    """
    request = f"{'GET' if method == 'HEAD' else method} {path}"
    return role == "admin" or request in LABEL or (role == "edit" and (request in EDIT or request.startswith("GET ")))


class LinkError(DataError):
    """A token that opens nothing: wrong, expired or revoked."""


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token states: rater (empty: the owner, who may use any name), role, and when it ends and was made (Unix seconds)."""

    name: str
    role: Role
    until: int
    made: float

    def may_label_as(self, rater: str) -> bool:
        """Return whether answers may be stored under this name."""
        return self.name in ("", rater) or (self.role == "admin" and rater == ADJUDICATOR)


class Revocation(msgspec.Struct, frozen=True):
    """The end of all links of a name that were made until then (Unix seconds)."""

    name: str
    time: float


class Links:
    """The links to one workspace. Its key and the revocations are in `runs/.studio/`. Raises `StoreError` if the key can't be used."""

    def __init__(self, workspace: Workspace) -> None:
        folder = workspace.root / "runs" / ".studio"
        self._revoked = folder / "revoked.jsonl"
        self._address = folder / "address"
        options = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        self._signer = URLSafeSerializer(_key(folder), salt="cai-studio-link", signer_kwargs=options)

    def token(self, name: str | None, role: Role, days: int) -> str:
        """Return a new token for a rater, or without a name for the owner. Raises `DataError` if the name can't be a rater's."""
        now = time.time()
        link = Link("" if name is None else rater_name(name), role, int(now) + days * 24 * 60 * 60, now)
        return self._signer.dumps(msgspec.to_builtins(link))

    def read(self, token: str) -> Link:
        """Return what a token states. Raises `LinkError`, or another `CaiError` if the revocations can't be read."""
        try:
            link = msgspec.convert(self._signer.loads(token), Link)
        except (BadData, msgspec.ValidationError):
            raise LinkError("This link is not valid: its token is wrong. Copy the whole link, or ask for a new one.") from None
        if link.until <= time.time():
            raise LinkError("This link has expired. Ask for a new one.")
        found = read_existing(self._revoked, Revocation, torn_tail="drop")
        if any(r.name == link.name and link.made <= r.time for r in found):
            raise LinkError("This link has been revoked. Ask for a new one.")
        return link

    def opened_at(self, address: str) -> None:
        """Keep the address at which the app was last opened, for the links of others."""
        write_text(self._address, address)

    def address(self) -> str | None:
        """Return the address at which the app was last opened; None if it never was."""
        try:
            return self._address.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def revoke(self, name: str) -> None:
        """End all links that a name has so far. Raises `DataError` if the name can't be a rater's."""
        append_record(self._revoked, Revocation(rater_name(name), time.time()))


def _key(folder: Path) -> bytes:
    """Return the key in a folder, created once and readable for its owner only. Raises `StoreError`."""
    path = folder / "key"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / ".gitignore", "w", encoding="utf-8", opener=no_link) as ignored:
                fcntl.flock(ignored, fcntl.LOCK_EX)  # two processes must not each make a key
                ignored.write("*\n")
                if not path.exists():
                    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as f:  # mode 0600
                        f.write(secrets.token_bytes(KEY_BYTES))
                    Path(f.name).replace(path)
        key, fault = path.read_bytes(), "is damaged"
    except OSError as e:
        key, fault = b"", f"can't be read or written ({e.strerror or e})"
    if len(key) != KEY_BYTES:
        raise StoreError(f"{path}: the key of the studio's links {fault}. Restore it, or delete it and start again: all links end then.")
    return key
