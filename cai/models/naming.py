"""Parse a model's name on the command line into a `ModelSpec`."""

from pathlib import Path

from cai.errors import ModelError
from cai.recipe import ModelSpec


def spec_from_name(name: str, base: ModelSpec | None = None) -> ModelSpec:
    """Read a model's name: `embedded`, a named model, a folder, a `.gguf` file, a Hub id, an adapter's folder, or a server's `URL#MODEL`.

    `scripted#NAME` is a fake.

    An adapter's base model is read from its `adapter_config.json`. The other settings come from `base`.

    >>> spec_from_name("http://127.0.0.1:8000/v1#llama").name
    'llama'
    """
    from msgspec.structs import replace

    spec = base or ModelSpec()
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        return replace(spec, path=url, name=model or None, adapter=None)
    if name.startswith("scripted#"):
        return replace(spec, path="scripted", name=name.partition("#")[2], adapter=None)
    try:
        is_adapter = (Path(name) / "adapter_config.json").exists()
    except OSError as e:
        raise ModelError(f"{name[:80]}…: not a valid model name ({e.strerror})") from e
    if is_adapter:
        from cai.models.local.adapter import adapter_base

        return replace(spec, path=adapter_base(Path(name)), adapter=name)
    if name.startswith(("./", "/", "runs/")) and not Path(name).is_dir() and not Path(name).is_file():
        raise ModelError(f"{name}: no such model folder")
    return replace(spec, path=name, adapter=None)
