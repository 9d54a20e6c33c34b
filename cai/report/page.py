"""Render a report as one self-contained HTML file: no network, no scripts, all texts escaped.

`sections` and `verdict` prepare the contents, `templates/` the layout. The content security policy allows only the page's own styles, so
unescaped text could not load or run anything either.
"""

from markupsafe import Markup

from cai import __version__
from cai.data.balance import FEATURES, opposite_leanings
from cai.report import adherence, comparison_view, rewards, sections
from cai.report.audit_view import audit_summary, families
from cai.report.collect import ReportData
from cai.report.comparison import RunComparison
from cai.report.environment import html_environment, read_asset
from cai.report.frontier import along_the_way, frontier_plot, frontier_words
from cai.report.next_steps import costs_in_words, next_steps
from cai.report.verdict import judge_warning, reach_verdict

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render_report(data: ReportData) -> str:
    """Return the report as a self-contained HTML document."""
    trails, trail_principles = sections.trail_views(data)
    policy_plots, more_plots = sections.policy_plots(data, not judge_warning(data))
    environment = html_environment(__package__)
    return environment.get_template("report.html.j2").render(
        policy=POLICY,
        style=Markup(read_asset(__package__, "style.css")),
        data=data,
        manifest=data.manifest,
        verdict=reach_verdict(data),
        adherence=adherence.adherence_views(data),
        next_steps=next_steps(data),
        costs=costs_in_words(data),
        distilled=sections.distilled_views(data),
        stages=sections.stage_rows(data),
        warnings=sections.stage_warnings(data),
        bench=sections.bench_rows(data),
        judge_plots=sections.judge_plots(data),
        sft_plots=sections.curve_plots(data.curves, "sft"),
        reward_plots=rewards.reward_plots(data),
        reward_rows=rewards.measure_rows(data),
        policy_plots=policy_plots,
        more_plots=more_plots,
        reward_curves=rewards.reward_curves(data.curves),
        gold_accuracy=sections.gold_accuracy(data),
        blends=data.blends,
        frontier_words=frontier_words(data.frontier) if data.frontier else "",
        frontier_plots=[frontier_plot({"": data.frontier}), *along_the_way({"": data.frontier})] if data.frontier else [],
        policy_curves=sections.curve_plots(data.curves, "policy"),
        families=families(data.audit or ()),
        audit_summary=audit_summary(data.audit or ()),
        results=sections.result_rows(data.evaluation or ()),
        samples=sections.sample_views(data),
        trails=trails,
        trail_principles=trail_principles,
        principles={p.id: p for p in data.manifest.principles},
        uses=sections.use_rows(data.principles),
        label_plots=sections.label_plots(data),
        balance=sections.balance_rows(data),
        features=tuple(FEATURES),
        opposites=opposite_leanings(data.balance),
    )


def render_comparison(comparison: RunComparison) -> str:
    """Return a comparison of runs as a self-contained HTML document."""
    return (
        html_environment(__package__)
        .get_template("comparison.html.j2")
        .render(
            policy=POLICY,
            style=Markup(read_asset(__package__, "style.css")),
            version=__version__,
            c=comparison,
            headline=comparison_view.headline(comparison),
            sentences=comparison_view.sentences(comparison),
            constitutions=comparison_view.constitution_changes(comparison),
            figures=comparison_view.figure_rows(comparison),
            plots=comparison_view.figure_plots(comparison),
            tests=comparison_view.paired_rows(comparison.tests),
        )
    )
