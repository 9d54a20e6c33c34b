"""Let a model draft the requests and questions of a principle from its statement."""

from dataclasses import dataclass

from cai.constitution.proposals import WORDED, worded
from cai.core.workspace import TEMPLATES
from cai.errors import ConstitutionError, ReplyError
from cai.ids import derive_seed
from cai.records import DEFAULT_WORDING, Principle
from cai.session import Session
from cai.workbench.proposing import WORDING, read_wording, without_examples
from cai.workbench.replies import whole_lines

TEMPLATE = "word_principle"


@dataclass(frozen=True, slots=True)
class Wording:
    """Requests and questions that a model drafted for a principle."""

    principle_id: str
    statement: str
    texts: dict[str, str]
    """By field; without those that lint or the statement refuse."""
    left_out: tuple[str, ...]
    """Fields that the model gave no usable text for. The default wording, which quotes the statement, stays in force."""
    model: str


def refuse_untranslated(session: Session, language: str) -> None:
    """Raise `ConstitutionError` if what asks for drafts is in English, and so the drafts would be, and the constitution isn't.

    Args:
        session: it has the templates.
        language: of the constitution (ISO 639-1).
    """
    [template] = session.named_templates(TEMPLATE)
    if language != "en" and template.path.parent.name == TEMPLATES.name:
        raise ConstitutionError(
            f"the constitution is in another language ({language}) than {TEMPLATE}.txt, which asks a model for drafts: they would be in "
            f"English. Principles need none: without requests and questions of their own they have the defaults of their language. To have "
            f"drafts, translate {TEMPLATES / TEMPLATE}.txt into {TEMPLATES / language / TEMPLATE}.txt; keep the labels (Critique:, …)."
        )


async def draft_wording(session: Session, principle: Principle) -> Wording:
    """Draft critique request, revision request and judging questions from a principle's statement.

    A text is used only if lint finds nothing against it and it is about what the statement is about, not what the template's examples are.
    """
    [template] = session.named_templates(TEMPLATE)
    asked = template.render({"passage": principle.statement})
    seed = derive_seed(session.recipe.seed, "word", principle.statement)
    reply = await session.model.complete(asked.messages, WORDING, seed, asked.prefill)
    texts = read_wording(whole_lines(reply, asked.prefill))
    if not texts:
        raise ReplyError("unparsed", f"no line such as 'Critique:': {reply.text[:200]!r}")
    bare = Principle(principle.id, principle.statement, applies_to=principle.applies_to)
    drafted, kept = worded(bare, without_examples(texts, principle.statement, template))
    return Wording(
        principle.id,
        principle.statement,
        {name: text for name in kept if (text := getattr(drafted, name)) != DEFAULT_WORDING[name]},
        tuple(name for name in WORDED if name not in kept),
        session.model.engine.name,
    )
