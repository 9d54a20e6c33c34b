"""Renders a report as one HTML file that opens anywhere: no network, no script, all foreign text escaped.

What is shown is decided in `sections` and `verdict`, how it looks in `templates/`. The content security policy forbids everything but the
page's own styles, so text that got past the escaping still couldn't load or run anything.
"""

from collections.abc import Mapping, Sequence
from importlib import resources

from jinja2 import DictLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup

from cai.evaluate.balance import FEATURES, opposite_leanings
from cai.records import WatchPoint
from cai.report import rewards, sections
from cai.report.audit_view import audit_summary, families
from cai.report.collect import ReportData
from cai.report.formatting import duration, number, percent, plural, signed, visible
from cai.report.frontier import along_the_way, frontier_plot, frontier_words
from cai.report.verdict import reach_verdict

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
CLIP_CHARACTERS = 700
CLIP_LINES = 12


def render_report(data: ReportData) -> str:
    """Return the report as a self-contained HTML document."""
    trails, trail_principles = sections.trail_views(data)
    environment = _environment()
    return environment.get_template("report.html.j2").render(
        policy=POLICY,
        style=Markup(_read("style.css")),
        data=data,
        manifest=data.manifest,
        verdict=reach_verdict(data),
        stages=sections.stage_rows(data),
        bench=sections.bench_rows(data),
        judge_plots=sections.judge_plots(data),
        sft_plots=sections.curve_plots(data.curves, "sft"),
        reward_plots=rewards.reward_plots(data),
        reward_rows=rewards.measure_rows(data),
        policy_plots=sections.policy_plots(data),
        gold_accuracy=sections.gold_accuracy(data),
        frontier_words=frontier_words(data.frontier) if data.frontier else "",
        frontier_plots=[frontier_plot({"": data.frontier}), *along_the_way({"": data.frontier})] if data.frontier else [],
        policy_curves=sections.curve_plots(data.curves, "policy"),
        families=families(data.audit or ()),
        audit_summary=audit_summary(data.audit or ()),
        results=sections.result_rows(data.evaluation or ()),
        samples=sections.sample_views(data),
        trails=trails,
        trail_principles=trail_principles,
        principles=sections.principle_lookup(data),
        uses=sections.use_rows(data.principles),
        label_plots=sections.label_plots(data),
        balance=sections.balance_rows(data),
        features=tuple(FEATURES),
        opposites=opposite_leanings(data.balance),
    )


def render_frontier(title: str, arms: Mapping[str, Sequence[WatchPoint]]) -> str:
    """Return the over-optimisation of some policies as an HTML document of its own.

    Args:
        title: of the page.
        arms: observations in order, by the policy's name; at most two.
    """
    environment = _environment()
    return environment.get_template("frontier.html.j2").render(
        policy=POLICY,
        style=Markup(_read("style.css")),
        title=title,
        words=[(name, frontier_words(points)) for name, points in arms.items()],
        plots=[frontier_plot(arms), *along_the_way(arms)],
    )


def is_long(text: str) -> bool:
    """Whether a text is folded at first. It is all there, and one click shows it."""
    return len(text) > CLIP_CHARACTERS or text.count("\n") >= CLIP_LINES


def _environment() -> SandboxedEnvironment:
    names = [f.name for f in resources.files(__package__).joinpath("templates").iterdir() if f.name.endswith(".j2")]
    environment = SandboxedEnvironment(
        loader=DictLoader({name: _read(name) for name in names}),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "duration": duration, "plural": plural, "signed": signed}
    environment.tests |= {"long": is_long}
    return environment


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
