"""Where a model server is, and the key that opens it."""

import ipaddress
import os
from urllib.parse import urlsplit

from cai.errors import ModelError


def check_url(url: str) -> str:
    """Return a base URL without its last slash.

    Raises:
        ModelError: it isn't one plain `http(s)://host[:port]/path`, or has a password or query in it, which would end up in records.
    """
    if "," in url and url.count("://") > 1:
        raise ModelError(
            "model.path names several servers; `cai` asks one URL. Put a router in front of them and name its URL:\n"
            f"  vllm-router --worker-urls {' '.join(root_of(part.strip()) for part in url.split(','))} --policy cache_aware --port 8080 "
            "--health-check-interval-secs 5\n"
            "or serve on all GPUs of one machine behind one address: vllm serve MODEL --data-parallel-size N. See docs/servers.md."
        )
    import httpx2

    try:
        parts = urlsplit(url)
        httpx2.URL(url)
        _ = parts.port
    except (ValueError, httpx2.InvalidURL) as e:
        raise ModelError(f"model.path: not a URL ({e}). Expected for example http://127.0.0.1:8000/v1") from e
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ModelError(
            f"model.path: the URL of {parts.hostname} has a user, password or query in it, and it would be kept in the call store. "
            "Put the key into the environment variable that api_key_env names."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelError(f"model.path: {url!r} is not an http(s) URL. Expected for example http://127.0.0.1:8000/v1")
    return url.rstrip("/")


def read_key(variable: str) -> str | None:
    """Return the API key in an environment variable, or None. Raises `ModelError` where it can't be a header's value."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ModelError(f"${variable}: an API key is plain ASCII in one line; this one isn't (not shown). Set it again.")
    return key or None


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine.

    >>> is_loopback("http://127.0.0.1:8000/v1"), is_loopback("http://[::1]/v1"), is_loopback("http://gpu-0:8000/v1")
    (True, True, False)
    >>> is_loopback("http://0.0.0.0:8000/v1"), is_loopback("http://[::ffff:127.0.0.1]/v1")
    (True, True)
    """
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def root_of(url: str) -> str:
    """Return a server's URL without `/v1`, where vLLM has what is beside the protocol."""
    return url.rstrip("/").removesuffix("/v1")
