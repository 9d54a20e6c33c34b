"""Content hashes, per-item seeds and rendezvous hashing.

The results do not depend on the order of the items. After a run is interrupted, filtered or edited, the unchanged items keep their ids,
seeds and principles.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

_ENCODER = msgspec.json.Encoder(order="deterministic")


class _WithId(Protocol):
    @property
    def id(self) -> str: ...


W = TypeVar("W", bound=_WithId)


def content_hash(value: Any, length: int = 16) -> str:
    """Return the hex SHA-256 of a value's canonical JSON, truncated to `length` characters.

    Args:
        value: any value that `msgspec` encodes: records, tuples, mappings, strings, numbers.
        length: number of hex characters, 1 to 64. Item ids have 16 (64 bits), keys of the call store 64.

    >>> content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
    True
    """
    return hashlib.sha256(_ENCODER.encode(value)).hexdigest()[:length]


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """Return a seed in [0, 2**31) for one call, from the run's seed and the call's purpose (item id, stage, attempt).

    >>> derive_seed(0, "prompt-1", "respond", 0) == derive_seed(0, "prompt-1", "respond", 0)
    True
    >>> derive_seed(0, "prompt-1", "respond", 0) == derive_seed(0, "prompt-1", "respond", 1)
    False
    """
    digest = hashlib.sha256(_ENCODER.encode((run_seed, parts))).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _uniform(*parts: str | int) -> float:
    """Return a number in (0, 1) that is a hash of `parts`."""
    digest = hashlib.sha256(_ENCODER.encode(parts)).digest()
    return (int.from_bytes(digest[:8], "big") + 0.5) / 2.0**64


def rendezvous_order(item_id: str, weights: Iterable[tuple[str, float]], salt: str | int = 0) -> list[str]:
    """Rank candidates for an item by weighted rendezvous hashing (highest random weight, Thaler & Ravishankar 1998).

    A candidate's score depends only on the item and the candidate. Adding, editing or removing a candidate therefore changes the first
    choice only of items for which that candidate is or was first. A candidate is first with probability proportional to its weight.

    Args:
        item_id: id of the item.
        weights: pairs of candidate id and weight; candidates with a weight of 0 or less are left out.
        salt: another salt gives an independent ranking of the same item; for example a run's seed.

    Returns:
        Candidate ids, best first.
    """
    scored = [(-w / math.log(_uniform(salt, item_id, cid)), cid) for cid, w in weights if w > 0]
    return [cid for _, cid in sorted(scored, reverse=True)]


def split_fraction(item_id: str, salt: str) -> float:
    """Return a stable number in (0, 1) for an item, for splits that stay the same when rows are added."""
    return _uniform(salt, item_id)


def at_most(items: Sequence[W], limit: int | None, salt: str) -> tuple[W, ...]:
    """Return at most `limit` items, chosen by a hash of their ids, in their order. Raising the limit only adds some; None keeps all."""
    if limit is None or limit >= len(items):
        return tuple(items)
    order = sorted(range(len(items)), key=lambda i: (split_fraction(items[i].id, salt), i))
    return tuple(items[i] for i in sorted(order[:limit]))


def combine_hashes(parts: Sequence[str]) -> str:
    """Return the content hash of a list of hashes."""
    return content_hash(list(parts))
