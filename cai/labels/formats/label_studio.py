"""Exports of Label Studio as JSON. Tested with 1.23."""

from collections.abc import Iterator

from cai.data.conversations import RowFault
from cai.labels.columns import CHOICES, Found, Row, each, listed, named_sides
from cai.labels.readings import PairFormat, PairFormats, PairRow, Said, name_of, reading
from cai.records import PromptKind


def read_label_studio(row: Row, source: str, kind: PromptKind | None) -> Iterator[Found]:
    """Read a Label Studio task with all its annotations. Skipped ones and drafts are faults."""
    data = row["data"] if isinstance(row.get("data"), dict) else {}
    names, sides = named_sides(data)
    annotations = [a for a in listed(row.get("annotations")) if isinstance(a, dict)]
    drafts = [d for d in listed(row.get("drafts")) if not isinstance(d, dict) or d.get("annotation") is None]
    if not annotations and not drafts:
        raise RowFault("not_labelled", "the task has no annotation")

    def one(annotation: Row) -> PairRow:
        if annotation.get("was_cancelled"):
            raise RowFault("skipped", f"annotator {name_of(annotation.get('completed_by', ''))} skipped the task")
        results = _about_the_pair([r for r in listed(annotation.get("result")) if isinstance(r, dict)])
        if not results:
            raise RowFault("not_labelled", "the annotation has no pairwise or single choice")
        said = Said(((str(results[0].get("from_name") or "choice"), [r.get("value") for r in results]),), names)
        who = {**{k: v for k, v in data.items() if k in ("attributes", "rater_attributes")}, **annotation}
        return reading(*sides, said, data, source, kind, as_shown=True, who=who)

    yield from each(annotations, one)
    for draft in drafts:  # an unfinished change of an annotation leaves what was submitted
        who = name_of(draft.get("user")) if isinstance(draft, dict) else ""
        yield RowFault("not_submitted", f"a draft{f' of {who}' if who else ''} was not submitted")


def _about_the_pair(results: list[Row]) -> list[Row]:
    """Return the results of the control that compares the two responses; an annotation may have other controls too.

    It is the control named like a column in `CHOICES`, else the pairwise one, else the only one.

    Raises:
        RowFault: there are several candidates.
    """
    choices = [r for r in results if r.get("type") in ("pairwise", "choices")]
    controls = {str(r.get("from_name")): r["type"] for r in choices}
    name = next((c for c in CHOICES if c in controls), None) or next((c for c in controls if controls[c] == "pairwise"), None)
    if name is None and len(controls) > 1:
        raise RowFault(
            "no_choice",
            f"which of {', '.join(controls)} is about the two responses? Name that control `better`, or export JSON-MIN or CSV and say "
            "--column choice=NAME",
        )
    return [r for r in choices if name is None or str(r.get("from_name")) == name]


FORMATS = PairFormats(
    "label-studio",
    (PairFormat("label-studio", lambda row: isinstance(row.get("data"), dict) and "annotations" in row, read_label_studio),),
    "an export of Label Studio",
)
