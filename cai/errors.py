"""The exception tree. Errors that a user can cause or fix are `CaiError`s; any other exception is a bug.

    CaiError
    ├── ConstitutionError (ValueError)   a constitution file: schema, lint, import
    ├── RecipeError       (ValueError)   a run recipe, or a configuration that can't work
    ├── TemplateError     (ValueError)   a prompt template: unknown or missing field
    ├── DataError         (ValueError)   a data file; names file and line
    ├── ModelError        (RuntimeError) a model or server: can't load, can't answer, refuses
    │   ├── NoLogprobsError              a server that returns no log-probabilities
    │   └── ReplyError                   one unusable reply: recorded and counted, not fatal by itself
    ├── StoreError        (OSError)      the call store or a run directory: full, corrupt, locked
    └── TrainingError     (RuntimeError) a trainer: nothing to train, diverged, wrong world size

A message says what happened, where (file, line, YAML path), what was found, what was expected, and how to fix it. To add an exception:
subclass `CaiError` and the standard exception that a caller would expect, and add it to the tree above. A module that finds several
problems raises one error that lists them all.
"""


class CaiError(Exception):
    """Base of every error that a user can act on. The CLI prints it as a panel and exits 2."""


class ConstitutionError(CaiError, ValueError):
    """A constitution can't be read or breaks its schema."""


class RecipeError(CaiError, ValueError):
    """A recipe is wrong, or its configuration can't work."""


class TemplateError(CaiError, ValueError):
    """A prompt template is missing, malformed, or was given the wrong fields."""


class DataError(CaiError, ValueError):
    """A data file can't be read; the message names file and line."""


class ModelError(CaiError, RuntimeError):
    """A model or server can't be loaded or can't serve a request."""


class NoLogprobsError(ModelError):
    """The server returns no log-probabilities, so that only protocols that read text can use its model."""


class ReplyError(ModelError):
    """One reply is unusable (empty, unparseable, refused by the server). The item is counted as failed, never given a default."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class StoreError(CaiError, OSError):
    """The call store or a run directory can't be used: full, corrupt, or in use by another run."""


class TrainingError(CaiError, RuntimeError):
    """Training can't start, or failed."""
