"""Where a model server is, and the key that opens it."""

import ipaddress
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cai.core.jsonl import NOT_JSON, write_text
from cai.errors import ModelError

_KEY_NAME = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")


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


def read_key(variable: str, url: str) -> str | None:
    """Return the API key in an environment variable, or None.

    A recipe names both the variable and the server, and may come from a stranger. So only variables named `…_API_KEY` are read, and a key
    is sent only to the host that it was first used with. `$CAI_KEY_HOSTS` allows more.

    Args:
        variable: its name.
        url: where the key would be sent.

    Raises:
        ModelError: the key may not be sent there, or can't be a header's value.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable():
        raise ModelError(f"${variable}: an API key is plain ASCII in one line; this one isn't (not shown). Set it again.")
    parts = urlsplit(url)
    allowed = os.environ.get("CAI_KEY_HOSTS", "").replace(",", " ").split()
    if f"{variable}={parts.hostname}" in allowed:
        return key
    allow = f"If you want that, allow it: export CAI_KEY_HOSTS={variable}={parts.hostname}"
    if not _KEY_NAME.fullmatch(variable):
        raise ModelError(
            f"api_key_env: ${variable} would be sent to {parts.hostname}. Only variables named …_API_KEY are sent, because a recipe of "
            f"someone else could name any secret. {allow}"
        )
    if not is_loopback(url):
        _bind(variable, f"{parts.scheme}://{parts.hostname}", allow)
    return key


def _bind(variable: str, host: str, allow: str) -> None:
    """Remember the host that a key is first used with. Raises `ModelError` if it was another one."""
    path = config_dir() / "key_hosts.json"
    try:
        hosts = msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}
        if variable not in hosts:
            write_text(path, msgspec.json.encode({**hosts, variable: host}).decode() + "\n")
    except (OSError, *NOT_JSON) as e:
        raise ModelError(f"{path}: can't be read or written ({e}), and it says which host ${variable} belongs to. {allow}") from e
    if (known := hosts.get(variable, host)) != host:
        raise ModelError(
            f"${variable} was first used with {known} and would now be sent to {host}. Name another variable in api_key_env. {allow} "
            f"(or remove the entry in {path})"
        )


def config_dir() -> Path:
    """Return the folder for what `cai` keeps of a person: `$CAI_CONFIG`, else `$XDG_CONFIG_HOME/cai`, else `~/.config/cai`."""
    if own := os.environ.get("CAI_CONFIG"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".config") / "cai"


def is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine.

    >>> is_loopback("http://127.0.0.1:8000/v1"), is_loopback("http://[::1]/v1"), is_loopback("http://gpu-0:8000/v1")
    (True, True, False)
    >>> is_loopback("http://127.1/v1"), is_loopback("http://0.0.0.0:8000/v1"), is_loopback("http://[::ffff:127.0.0.1]/v1")
    (True, True, True)
    """
    host = (urlsplit(url).hostname or "").removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(socket.inet_aton(host))  # short forms too
    except (OSError, ValueError):
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            return False
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or found.is_unspecified


def root_of(url: str) -> str:
    """Return a server's URL without `/v1`, where vLLM has what is beside the protocol."""
    return url.rstrip("/").removesuffix("/v1")
