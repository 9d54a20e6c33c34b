"""The dataset card (README.md) of an export: contents, origin, label statistics and known limits."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cai import __version__
from cai.core.manifest import JudgeCard
from cai.core.text.markdown import code, escape_markdown
from cai.data.export import Exported
from cai.data.export_format import RunData
from cai.data.filters import length_stats
from cai.records import Preference


def dataset_card(data: RunData, exported: Exported, name: str, model: str = "", judge: JudgeCard | None = None) -> str:
    """Return the text of README.md, with the YAML front matter that the Hub and `datasets.load_dataset` read.

    Args:
        data: the exported data.
        exported: the result of `export`.
        name: name of the dataset.
        model: name of the model that wrote the responses.
        judge: measurements of the judge; None if no label came from one.
    """
    preferences = [*data.train, *data.held_out]
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(exported, name), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _made(data, model),
        f"## Files\n\n{exported.format.about}\n\n{_table(('table', 'rows'), exported.tables.items())}{_left_out(exported)}",
        _labels(data, preferences),
        _judge(preferences, judge),
        _principles(data, preferences),
        _limits(data, preferences, judge),
    ]
    return "\n\n".join(s for s in sections if s) + "\n"


def is_card(path: Path) -> bool:
    """Whether a file is a card that `dataset_card` made."""
    try:
        with path.open("rb") as f:
            text = f.read(1 << 16)
    except OSError:
        return False
    return text.startswith(b"---\n") and b"\nMade with `cai` " in text


def _front_matter(exported: Exported, name: str) -> dict[str, Any]:
    rows = sum(exported.tables.values())
    matter: dict[str, Any] = {
        "license": "other",  # until the owner chooses one
        "pretty_name": name,
        "task_categories": ["text-generation"],
        "tags": ["constitutional-ai", "rlaif", "preference", "alignment", *exported.format.tags],
        "size_categories": [next(label for limit, label in _SIZES if rows < limit)],
    }
    configs: dict[str, list[dict[str, str]]] = {}
    for table in exported.tables if exported.format.tables else ():
        config, _, split = table.rpartition("/")
        configs.setdefault(config or "default", []).append({"split": split, "path": f"{table}.parquet"})
    if configs:
        matter["configs"] = [{"config_name": config, "data_files": files} for config, files in configs.items()]
    return matter


_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (float("inf"), "n>1M"))


def _made(data: RunData, model: str) -> str:
    text = f"Made with `cai` {__version__}"
    text += f" from responses of {code(model)}" if model else ""
    if data.constitution:
        c = data.constitution
        text += f" under the constitution *{_line(c.name)}* ({code(c.id)}, {len(c.principles)} principles, hash {code(c.hash)})"
    return (
        f"## How it was made\n\n{text}. Responses were critiqued and revised under principles of the constitution, pairs of responses were "
        "judged, and preferences were split into training and held-out sets by prompt: no prompt text is in both."
    )


def _left_out(exported: Exported) -> str:
    if not exported.failures:
        return ""
    reasons = Counter(f.reason for f in exported.failures).most_common()
    return "\n\nLeft out, because the format can't hold them: " + ", ".join(f"{n} × {_line(reason)}" for reason, n in reasons) + "."


def _labels(data: RunData, preferences: Sequence[Preference]) -> str:
    if not preferences:
        return ""
    held_out = Counter(p.source for p in data.held_out)
    by_source = []
    for source, n in sorted(Counter(p.source for p in preferences).items()):
        stats = length_stats([p for p in preferences if p.source == source])
        lengths = (f"{stats.mean_chosen_characters:.0f}", f"{stats.mean_rejected_characters:.0f}", f"{stats.chosen_longer_fraction:.0%}")
        by_source.append((code(source), n - held_out[source], held_out[source], *lengths))
    bins = Counter(min(int(max(p.p_chosen, 1.0 - p.p_chosen) * 10 + 1e-9), 9) for p in preferences)
    spread = [(f"{b / 10:.1f} to {(b + 1) / 10:.1f}", bins[b], f"{bins[b] / len(preferences):.0%}") for b in range(5, 10)]
    kinds = sorted(Counter(p.prompt.kind for p in preferences).items())
    return "\n\n".join(
        [
            "## Labels",
            _table(("source", "train", "held out", "chosen, characters", "rejected, characters", "chosen is longer"), by_source),
            "Confidence of the labels, by the probability of the better response:",
            _table(("probability", "preferences", "share"), spread),
            _table(("kind of prompt", "preferences"), kinds),
        ]
    )


def _judge(preferences: Sequence[Preference], judge: JudgeCard | None) -> str:
    if not any(p.source.startswith(("ai:", "revision:")) for p in preferences):
        return ""
    if judge is None or not judge.measured:
        note = f" {_line(judge.note)}" if judge and judge.note else ""
        return f"## The judge\n\n**The judge's agreement with human labels was not measured.** Treat its labels as unverified.{note}"
    verdict = "beats" if judge.beats_baselines else "**does not beat**"
    return (
        f"## The judge\n\nThe {code(judge.protocol)} protocol agrees with human labels on {judge.accuracy:.1%} of {judge.n} pairs of "
        f"{code(judge.pairs)} (95 % interval {judge.low:.1%} to {judge.high:.1%}). It {verdict} the best trivial baseline"
        f"{f' ({_line(judge.best_baseline)})' if judge.best_baseline else ''}.{f' {_line(judge.note)}' if judge.note else ''}"
    )


def _principles(data: RunData, preferences: Sequence[Preference]) -> str:
    """Count labels per principle, or SFT examples per principle if there are no preferences."""
    used = [p.principle_ids for p in preferences] or [e.principle_ids for e in data.sft]
    counts = Counter(i for ids in used for i in ids)
    if not counts:
        return ""
    statements = {p.id: p.statement for p in data.constitution.principles} if data.constitution else {}
    rows = [(code(i), n, _line(statements.get(i, ""))) for i, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return "## Principles\n\n" + _table(("principle", "preferences" if preferences else "examples", "statement"), rows)


def _limits(data: RunData, preferences: Sequence[Preference], judge: JudgeCard | None) -> str:
    limits = [
        "Prompts, rejected and initial responses may be harmful or offensive. They are included so that models learn to avoid them.",
        "Responses were written by a model and may be wrong. A judge's preference under a principle doesn't mean that a response is true.",
    ]
    if any(not p.source.startswith("human:") for p in preferences):
        limits.append("AI labels inherit the judge's biases (length, position, style) and its blind spots.")
    if any(p.source == "contrast" for p in preferences):
        limits.append("`contrast` labels follow from how the pair was made; no judge or annotator checked them.")
    if judge and judge.measured and not judge.beats_baselines:
        limits.append("The judge was not shown to be better than a trivial rule on human labels: don't train on the AI labels alone.")
    cut = sum(p.chosen_truncated + p.rejected_truncated for p in preferences), sum(e.truncated for e in data.sft)
    if any(cut):
        limits.append(
            f"{cut[0]} of {2 * len(preferences)} responses of preferences and {cut[1]} of {len(data.sft)} SFT completions were cut off at "
            "the token limit, which the columns `…truncated` say: don't train a model to end its turn there."
        )
    longer = length_stats(preferences).chosen_longer_fraction
    if preferences and abs(longer - 0.5) > 0.1:
        side = "longer" if longer > 0.5 else "shorter"
        limits.append(f"The chosen response is the {side} one in {max(longer, 1 - longer):.0%} of pairs: a model can learn that instead.")
    return "## Known limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _line(text: str) -> str:
    return escape_markdown(" ".join(text.split()))


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("\\|", "|").replace("|", "\\|") for cell in line) + " |" for line in lines)
