"""Drafts of constitutions: every edit is stored as a draft, and the file changes only on save.

The text is saved as typed, so comments and layout are preserved. Drafts are written atomically to `runs/.studio/drafts/`. Every change
names the version that it is based on. If another tab or an editor has changed the text, the change is refused and nothing is lost.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import msgspec

from cai.constitution.editing import UNWRITTEN
from cai.constitution.importers import dump_yaml
from cai.constitution.lint import LintFinding, lint_text
from cai.constitution.load import parse_constitution
from cai.core.jsonl import disk_error, read_file, write_text
from cai.core.workspace import Workspace, is_text
from cai.core.yaml_source import parse_yaml
from cai.errors import ConstitutionError, DataError, StoreError
from cai.ids import content_hash
from cai.records import Constitution, Principle
from cai.studio.principle_form import PrincipleForm, principle_forms

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MOST_VERSIONS = 30
"""Number of earlier texts that are listed."""


class ChangedElsewhereError(ConstitutionError):
    """The text has changed since the version that the edit is based on."""


class _Kept(msgspec.Struct, frozen=True):
    """A draft on disk."""

    text: str
    base: str
    """Hash of the file's text when the draft was created."""


@dataclass(frozen=True, slots=True)
class SavedVersion:
    """An earlier text of a file, kept when it was saved over."""

    key: str
    saved: str
    """Time at which it was replaced (UTC)."""
    text: str


@dataclass(frozen=True, slots=True)
class Edited:
    """State of the editor for one constitution."""

    name: str
    text: str
    version: str
    """Hash of the draft and the file."""
    is_draft: bool
    """Whether the text differs from the file."""
    is_overtaken: bool
    """Whether the file changed after the draft was created; saving would undo that change."""
    findings: tuple[LintFinding, ...]
    form: tuple[PrincipleForm, ...]
    """Empty if the text can't be parsed."""
    fault: str
    """Error that prevents loading the text; empty if it can be loaded."""
    language: str
    """Language of the default requests and questions, as the text states it."""


class Drafts:
    """The constitutions of one workspace.

    Args:
        workspace: the workspace. Only its `constitution/*.yaml` and the drafts are read or written.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.root / "constitution"
        self._drafts = workspace.root / "runs" / ".studio" / "drafts"
        self._one_at_a_time = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all constitutions."""
        return sorted(p.stem for p in self._folder.glob("*.yaml") if p.is_file() and is_text(p.name))

    def create(self, name: str) -> None:
        """Create a constitution with one principle to begin with. Raises `DataError` if the name is taken or can't be an id."""
        if not _ID.fullmatch(name):
            raise DataError(f"{name[:64]!r}: a name is lowercase kebab case: a to z, 0 to 9, single dashes between")
        with self._one_at_a_time:
            if (self._folder / f"{name}.yaml").exists():
                raise DataError(f"constitution/{name}.yaml exists already")
            first = Principle("principle-1", UNWRITTEN)
            made = Constitution(name, name.replace("-", " ").capitalize(), "Say here what this constitution is for.", (first,))
            write_text(self._folder / f"{name}.yaml", dump_yaml(made))

    def path(self, name: str) -> Path:
        """Return the file of a constitution. Raises `DataError` if there is none of that name."""
        if name not in self.names():
            raise DataError(f"constitution/{name}.yaml: no such file. There are: {', '.join(self.names()) or 'none'}")
        return self._folder / f"{name}.yaml"

    def open(self, name: str) -> Edited:
        """Return the editor's state: the draft if there is one, else the file.

        Raises:
            DataError: there is no constitution of that name.
            ConstitutionError: the file is not text.
        """
        saved, kept = self.saved_text(name), self._kept(name)
        text = saved if kept is None else kept.text
        overtaken = kept is not None and kept.base != content_hash(saved)
        return Edited(name, text, _version(saved, kept), text != saved, overtaken, *_examined(text, Path(f"{name}.yaml")))

    def write(self, name: str, text: str, version: str) -> Edited:
        """Store a draft. A draft that equals the file is deleted.

        Raises:
            ChangedElsewhereError: `version` is not the current version.
            StoreError: the disk is full or the file can't be written.
        """
        with self._one_at_a_time:
            saved, before = self._expect(name, version)
            if "\r\n" in saved:  # browsers send every line break as \n
                text = text.replace("\r\n", "\n").replace("\n", "\r\n")
            if text == saved:
                self._drop(name)
            else:
                base = content_hash(saved) if before is None else before.base
                write_text(self._draft(name), msgspec.json.encode(_Kept(text, base)).decode())
            return self.open(name)

    def save(self, name: str, version: str) -> Edited:
        """Save the draft to the file.

        Raises:
            ChangedElsewhereError: `version` is not the current version.
            ConstitutionError: the draft can't be loaded as a constitution.
            StoreError: the disk is full or the file can't be written.
        """
        with self._one_at_a_time:
            self._expect(name, version)
            edited = self.open(name)
            if edited.fault:
                raise ConstitutionError(f"Not saved, because the text is not a valid constitution. Your draft is kept. {edited.fault}")
            if edited.is_draft:
                self._keep_version(name)
                write_text(self.path(name), edited.text)
                self._drop(name)
            return self.open(name)

    def discard(self, name: str, version: str) -> Edited:
        """Delete the draft. Raises `ChangedElsewhereError` if `version` is not the current version."""
        with self._one_at_a_time:
            self._expect(name, version)
            self._drop(name)
            return self.open(name)

    def edit(self, name: str, version: str, change: Callable[[str], str]) -> Edited:
        """Change the text and store it as a draft. `change` raises `ConstitutionError` to refuse. Otherwise as `write`."""
        with self._one_at_a_time:
            self._expect(name, version)
            text = change(self.open(name).text.replace("\r\n", "\n"))
        return self.write(name, text, version)

    def history(self, name: str) -> list[SavedVersion]:
        """Return the earlier texts of a file, newest first: those that the studio saved over."""
        found = sorted(self._history(name).glob("*.yaml"), reverse=True)[:MOST_VERSIONS]
        return [SavedVersion(p.stem, f"{p.stem[:10]} {p.stem[11:13]}:{p.stem[13:15]} UTC", p.read_bytes().decode()) for p in found]

    def restore(self, name: str, version: str, key: str) -> Edited:
        """Make an earlier text the draft. Raises as `write` does, and `DataError` if there is no such text."""
        earlier = next((v for v in self.history(name) if v.key == key), None)
        if earlier is None:
            raise DataError(f"{name}: there is no saved version {key[:40]!r}")
        return self.write(name, earlier.text, version)

    def _history(self, name: str) -> Path:
        return self._drafts.parent / "history" / self.path(name).stem

    def _keep_version(self, name: str) -> None:
        """Keep the file's text before it is replaced."""
        write_text(self._history(name) / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S.%f}.yaml", self.saved_text(name))

    def saved_text(self, name: str) -> str:
        """Return the file's text with its line breaks unchanged. Raises `ConstitutionError` if it is not UTF-8 text."""
        path = self.path(name)
        try:
            return read_file(path).decode()
        except OSError as e:
            raise ConstitutionError(f"{path}: can't be read ({e.strerror or e})") from e
        except UnicodeDecodeError as e:
            raise ConstitutionError(f"{path}: not UTF-8 text ({e.reason})") from e

    def versions(self, name: str) -> tuple[Constitution, Constitution]:
        """Return the constitution as saved and as in the editor. Raises `ConstitutionError` if one is not valid."""
        where = self.path(name)
        return parse_constitution(self.saved_text(name), where), parse_constitution(self.open(name).text, where)

    def _expect(self, name: str, version: str) -> tuple[str, _Kept | None]:
        """Return the file's text and the draft. Raises `ChangedElsewhereError` if `version` is not the current version."""
        now = self.saved_text(name), self._kept(name)
        if _version(*now) != version:
            raise ChangedElsewhereError(f"{name} was changed in another tab or program since you opened it. Nothing was overwritten.")
        return now

    def _draft(self, name: str) -> Path:
        return self._drafts / f"{self.path(name).stem}.json"

    def _kept(self, name: str) -> _Kept | None:
        path = self._draft(name)
        try:
            return msgspec.json.decode(read_file(path), type=_Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as e:
            raise StoreError(f"{path}: the draft can't be read ({e}). Move it away to continue from the saved file.") from e

    def _drop(self, name: str) -> None:
        path = self._draft(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            raise disk_error(e, path) from e


def _version(saved: str, kept: _Kept | None) -> str:
    return content_hash((saved, kept))


@lru_cache(maxsize=64)
def _examined(text: str, where: Path) -> tuple[tuple[LintFinding, ...], tuple[PrincipleForm, ...], str, str]:
    """Return the lint findings, the form, the load error (empty if there is none) and the language. Results are cached."""
    findings = sorted(lint_text(text, where), key=lambda f: (f.line or 0, f.severity))
    try:
        source = parse_yaml(text.encode(), where, ConstitutionError)
    except ConstitutionError as e:
        return tuple(findings), (), str(e), ""
    form = principle_forms(source, text, findings)
    language = str(source.data.get("language", "en")) if isinstance(source.data, dict) else ""
    try:
        parse_constitution(text, where)
    except ConstitutionError as e:
        return tuple(findings), form, str(e), language
    return tuple(findings), form, "", language
