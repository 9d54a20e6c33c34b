"""The exception tree. Everything a user can cause or fix is a `CaiError`; anything else that escapes is a bug.

    CaiError
    ├── ConstitutionError (ValueError)   a constitution file: schema, lint, import
    ├── RecipeError       (ValueError)   a run recipe, or a set-up that can't work
    ├── TemplateError     (ValueError)   a prompt template: unknown or missing field
    ├── DataError         (ValueError)   a data file; names file and line
    ├── ModelError        (RuntimeError) a model or server: can't load, can't answer, refuses
    │   ├── NoLogprobsError              a server that gives no log-probabilities: its model can only be asked for words
    │   └── ReplyError                   one item's reply is unusable: recorded and counted, never fatal alone
    ├── StoreError        (OSError)      the call store or a run directory: full, corrupt, locked
    └── TrainingError     (RuntimeError) a trainer: nothing to train, diverged, wrong world size

A message says what, where (file, line, YAML path), what was found, what was expected, and the fix. To add one: subclass `CaiError`
and the stdlib exception a caller would expect, and put it in the picture above. A module that finds several problems raises one
error whose message lists them all.
"""


class CaiError(Exception):
    """Base of every error that a user can act on. The CLI prints it as a panel and exits 2."""


class ConstitutionError(CaiError, ValueError):
    """A constitution can't be read or breaks its schema."""


class RecipeError(CaiError, ValueError):
    """A recipe is wrong, or asks for a set-up that can't work."""


class TemplateError(CaiError, ValueError):
    """A prompt template is missing, malformed, or was given the wrong fields."""


class DataError(CaiError, ValueError):
    """A data file can't be read; the message names file and line."""


class ModelError(CaiError, RuntimeError):
    """A model or server can't be loaded or can't serve a request."""


class NoLogprobsError(ModelError):
    """The server gives no log-probabilities at all, so its model can only be asked for words."""


class ReplyError(ModelError):
    """One reply is unusable (empty, unparseable, refused by the server). A fault of one item: counted, never guessed around."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class StoreError(CaiError, OSError):
    """The call store or a run directory can't be used: full, corrupt, or in use by another run."""


class TrainingError(CaiError, RuntimeError):
    """Training can't start or went wrong in a way that would waste the run."""
