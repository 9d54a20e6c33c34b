"""What is wrong with a value, in plain words: the messages of JSON Schema errors."""

from typing import Any

from cai.core.plugins import did_you_mean

_TYPES = {
    "string": "a text",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a block of keys with values",
    "null": "null",
}
_BOUNDS = {"exclusiveMinimum": "above {}", "minimum": "at least {}", "exclusiveMaximum": "below {}", "maximum": "at most {}"}
_EMPTY = ("minItems", "minLength", "minProperties")


def in_words(error: Any) -> str:
    """Return the message of a `jsonschema.ValidationError`. Kinds of error without a wording here keep the library's."""
    kind, schema, value = error.validator, error.schema, error.instance
    if kind == "type" or kind in _BOUNDS:
        return f"must be {_wanted(schema)}; found {_found(value)}"
    if kind in _EMPTY and error.validator_value == 1:
        return "must not be empty"
    if kind == "pattern" and isinstance(value, str) and not value.strip():
        return "must not be empty"
    if kind == "pattern" and "description" in schema:
        return f"{_found(value)} is not {schema['description']}"
    if kind == "required":
        return f"{error.message.removesuffix(' is a required property')} is missing"  # the library reports each key by itself
    if kind == "enum":
        names = [str(name) for name in error.validator_value]
        return f"{_found(value)} is none of {', '.join(names)}{did_you_mean(str(value)[:80], names)}"
    if kind == "maxLength":
        return f"too long: {len(value)} characters, of {error.validator_value} at most"
    if kind == "maxItems":
        return f"too many: {len(value)}, of {error.validator_value} at most"
    if kind == "uniqueItems":
        return "something stands twice in this list"
    return error.message if len(error.message) <= 300 else f"{error.message[:200]} ... {error.message[-80:]}"


def unknown_keys(extra: list[str], known: list[str]) -> str:
    """Return the message about keys that a block doesn't have: the closest known one, or all if none is close.

    >>> unknown_keys(["chek"], ["check", "weight"]), unknown_keys(["x"], ["check", "weight"])
    ("unknown key 'chek'. Did you mean 'check'?", "unknown key 'x'; known: check, weight")
    """
    said = f"unknown key{'s' if len(extra) > 1 else ''} {', '.join(map(repr, extra))}"
    close = did_you_mean(str(extra[0])[:80], known)
    return said + close if close and len(extra) == 1 else f"{said}; known: {', '.join(known)}{close}"


def _wanted(schema: dict[str, Any]) -> str:
    """Return what a schema wants, by its type and bounds.

    >>> _wanted({"type": "integer", "minimum": 1}), _wanted({"type": "number", "minimum": 0, "maximum": 1})
    ('a whole number, at least 1', 'a number from 0 to 1')
    """
    types = schema.get("type", [])
    name = " or ".join(_TYPES[t] for t in ([types] if isinstance(types, str) else types)) or "a number"
    if "minimum" in schema and "maximum" in schema:
        return f"{name} from {schema['minimum']} to {schema['maximum']}"
    bounds = [said.format(schema[key]) for key, said in _BOUNDS.items() if key in schema]
    joined = " and ".join(bounds)
    return f"{name}{', ' if joined.startswith('at') else ' ' if joined else ''}{joined}"


def _found(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return _TYPES["object" if isinstance(value, dict) else "array"]
    return repr(value if not isinstance(value, str) or len(value) <= 80 else f"{value[:77]}...")
