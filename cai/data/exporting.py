"""`cai export`: writes a run's data in another tool's format with a dataset card, and uploads it on request."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cai.core.jsonl import read_existing, write_text
from cai.core.manifest import Manifest, read_manifest
from cai.core.workspace import RunDirectory, no_such_run
from cai.data.card import dataset_card, is_card
from cai.data.export import export, export_format
from cai.data.export_format import RunData
from cai.data.hub import push_to_hub
from cai.errors import DataError
from cai.records import Constitution, Preference, RevisionTrace, SFTExample

T = TypeVar("T")


@dataclass(frozen=True)
class ExportResult:
    """Files that an export wrote, and the URL of the upload."""

    folder: str
    files: tuple[str, ...]
    rows: dict[str, int]
    """Number of rows per table."""
    left_out: int
    """Number of rows that the format can't represent. The card lists the reasons."""
    url: str | None
    """URL of the dataset; None if it was not uploaded."""


def read_run_data(run: RunDirectory, manifest: Manifest) -> RunData:
    """Read the data that a run has written so far. Raises `DataError` if a file can't be read."""

    def rows(name: str, record_type: type[T]) -> list[T]:
        return list(read_existing(run.data(name), record_type))

    card = manifest.constitution
    constitution = Constitution(card.id, card.name, "", card.principles) if card is not None else None
    return RunData(
        rows("preferences", Preference),
        rows("preferences_heldout", Preference),
        [*rows("sft", SFTExample), *rows("distilled", SFTExample)],
        rows("traces", RevisionTrace),
        constitution,
    )


def export_run(
    run: RunDirectory,
    format: str,
    out: Path | None,
    push_to: str | None,
    private: bool,
    agree: Callable[[str], bool] = lambda preview: True,
) -> ExportResult:
    """Write a run's data in one format.

    Args:
        format: name of an export format.
        out: folder to write to; None: `export/FORMAT` in the run directory.
        push_to: dataset repository to upload to, or None.
        private: whether a new repository is private.
        agree: is shown what would be uploaded, and says whether to.

    Raises:
        DataError: there is nothing to export, the format is unknown, `out` has files of others in the way, or the upload failed.
        StoreError: the folder can't be written.
    """
    manifest = read_manifest(run.manifest)
    if manifest is None:
        raise no_such_run(run)
    data, names = read_run_data(run, manifest), export_format(format).files
    folder = out or run.path / "export" / format
    card = folder / "README.md"
    if not is_card(card):
        tables = map(folder.joinpath, names if out is not None else ())  # of a stopped export, in the run's own folder
        in_the_way = [path for path in (card, *tables) if path.exists()]
        if in_the_way:
            raise DataError(f"{in_the_way[0]}: is not of an export by `cai` and would be lost. Choose another --out, or move it away.")
    exported = export(data, format, folder)
    write_text(card, dataset_card(data, exported, run.path.name, manifest.model, manifest.judge))
    files = sorted(["README.md", *(name for name in names if (folder / name).is_file())])
    url = push_to_hub(folder, files, push_to, private, agree) if push_to else None
    return ExportResult(str(folder), tuple(str(folder / name) for name in files), exported.tables, len(exported.failures), url)
