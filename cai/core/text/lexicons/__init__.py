"""Word rules in other languages than English: how a refusal opens, and the phrases that the audit looks for.

One file per language. The English rules are in `cai.core.text.refusals` and `cai.evaluate.audit.markers`. Patterns for refusals and phrases are
matched against `cai.core.text.words.plain` text: lower case, single spaces, and Arabic without vowel marks and with one form of alif.
"""

from cai.core.text.lexicons import ar, de, es, fr, zh
from cai.core.text.lexicons.lexicon import Lexicon

LEXICONS: dict[str, Lexicon] = {lexicon.code: lexicon for lexicon in (zh.LEXICON, es.LEXICON, fr.LEXICON, de.LEXICON, ar.LEXICON)}
"""Language code to its lexicon."""
KNOWN: dict[str, str] = {"en": "English"} | {code: lexicon.name for code, lexicon in LEXICONS.items()}
"""Languages that the rules for refusals and the audit's phrases know: code to name."""
