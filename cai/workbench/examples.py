"""Annotation guidelines with worked examples from a run: revisions that its judge preferred, and pairs judged under a single principle."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cai.constitution.guidelines import Example, as_html, as_markdown, check_guidelines, examples_path, guideline_blocks, load_examples
from cai.core.jsonl import read_existing, refuse_replacing, write_text
from cai.core.workspace import RunDirectory
from cai.errors import ConstitutionError, DataError
from cai.records import Constitution, Judgment, Message, ResponsePair, RevisionTrace

PER_PRINCIPLE = 2


@dataclass(frozen=True, slots=True)
class Guidelines:
    """Rendered guidelines and their counts."""

    text: str
    principles: int
    examples: int
    without_example: tuple[str, ...]


def write_guidelines(constitution: Constitution, folder: Path, out: Path | None, run: RunDirectory | None) -> Guidelines:
    """Render a constitution as annotation guidelines.

    Args:
        folder: folder with its own examples, in `examples/ID.yaml`.
        out: file to write, `.html` or `.md`; None: render Markdown and write nothing.
        run: run to take the examples from instead.
    """
    if out is not None and out.suffix.lower() not in (".md", ".html"):
        raise ConstitutionError(f"{out}: expected a name that ends in .md or .html")
    refuse_replacing(out, check_guidelines)
    own = examples_path(constitution, folder)
    examples = run_examples(run) if run is not None else load_examples(own) if own.is_file() else ()
    ids = {p.id for p in constitution.principles}
    used = [e for e in examples if e.principle in ids]
    blocks = list(guideline_blocks(constitution, used))
    text = as_html(blocks) if out is not None and out.suffix.lower() == ".html" else as_markdown(blocks)
    if out is not None:
        write_text(out, text)
    shown = {e.principle for e in used}
    return Guidelines(text, len(ids), len(used), tuple(p.id for p in constitution.principles if p.id not in shown))


def run_examples(run: RunDirectory, per_principle: int = PER_PRINCIPLE) -> list[Example]:
    """Return a run's examples for each principle about which its judge was most confident.

    A revision is used if all its rounds were under the same principle and it was not dropped. Revisions that were not judged come last.
    """
    wanted = [run.data(name) for name in ("traces", "judgments")]
    if not any(path.is_file() for path in wanted):
        raise DataError(f"{run.path}: no traces and no judgements to take examples from. Run its stages critique or feedback first.")
    found: dict[str, list[tuple[float, Example]]] = {}
    for sureness, example in (*_from_traces(run), *_from_judgments(run)):
        found.setdefault(example.principle, []).append((sureness, example))
    kept = [sorted(rows, key=lambda row: -row[0])[:per_principle] for rows in found.values()]
    return [example for rows in kept for _, example in rows]


def _from_traces(run: RunDirectory) -> Iterator[tuple[float, Example]]:
    for trace in read_existing(run.data("traces"), RevisionTrace):
        ids = {r.critique.principle_id for r in trace.rounds}
        if len(ids) != 1 or trace.dropped is not None or (trace.p_revised is not None and trace.p_revised <= 0.5):
            continue
        judged = "nobody has judged it" if trace.p_revised is None else f"{trace.p_revised:.0%} better, says its judge"
        source = f"a model's revision in run {run.path.name}; {judged}. The reason is the model's own critique."
        example = Example(ids.pop(), _asked(trace.prompt.messages), trace.final, trace.response, trace.rounds[-1].critique.text, source)
        yield (0.5 if trace.p_revised is None else trace.p_revised), example


def _from_judgments(run: RunDirectory) -> Iterator[tuple[float, Example]]:
    alone = {j.pair_id: j for j in read_existing(run.data("judgments"), Judgment) if len(j.principle_ids) == 1 and j.p_a not in (None, 0.5)}
    for pair in read_existing(run.data("pairs"), ResponsePair):
        judgment = alone.get(pair.id)
        if judgment is None or judgment.p_a is None:
            continue
        p = max(judgment.p_a, 1 - judgment.p_a)
        better, worse = (pair.response_a, pair.response_b) if judgment.p_a > 0.5 else (pair.response_b, pair.response_a)
        source = f"a model's answers in run {run.path.name}; {p:.0%} better, says its judge ({judgment.protocol})."
        yield p, Example(judgment.principle_ids[0], _asked(pair.prompt.messages), better, worse, "", source)


def _asked(messages: tuple[Message, ...]) -> str:
    """Return a conversation as text; the role of a single turn is left out."""
    return messages[0].content if len(messages) == 1 else "\n\n".join(f"{m.role}: {m.content}" for m in messages)
