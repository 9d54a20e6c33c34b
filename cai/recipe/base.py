"""What the sections of a recipe share: ranges, the model and its sampling."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, UnsetType

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Precision = Literal["auto", "float32", "bfloat16", "nf4"]
"""`auto`: bfloat16 where the hardware supports it, else float32. `nf4`: 4-bit weights with bfloat16 arithmetic (QLoRA)."""
OwnSettings = dict[str, Any] | UnsetType
"""Settings of an installed package's protocol, term or method, by the type that it declares. Left out of a recipe that gives none, so that
its hashes stay as they are."""


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block of a recipe. Unknown keys are errors."""


class ModelSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, and how to load it or connect to it."""

    path: str = "embedded"
    """`embedded` (the small model included in `cai`), a name that `cai models` lists, a folder, a `.gguf` file, a Hub id, or the
    `http(s)://…/v1` URL of an OpenAI-compatible server. One URL: several servers of one model stand behind `vllm-router`, or one
    `vllm serve --data-parallel-size N` (docs/servers.md)."""
    name: str | None = None
    """Model name on the server. Only for URLs."""
    adapter: str | None = None
    """Folder of a LoRA adapter to load on top of the model. For a URL: the adapter's name on the server."""
    precision: Precision = "auto"
    """Precision of a local model's weights. `auto`: bfloat16 where the hardware supports it, else float32. `nf4`: 4-bit (QLoRA)."""
    batch_size: Positive = 64
    """Maximum number of sequences per batch. Only for local models."""
    max_length: Positive = 2048
    """Maximum length of prompt plus completion, in tokens. A prompt that leaves no room is counted as a failure."""
    concurrency: Positive = 64
    """Maximum number of concurrent requests. Only for URLs."""
    timeout_seconds: Rate = 120.0
    """Timeout of one request, in seconds. Only for URLs."""
    prompt_price: Annotated[float, Meta(ge=0)] = 0.0
    """US dollars per million prompt tokens, for the cost estimate. 0 for a model that you host yourself."""
    completion_price: Annotated[float, Meta(ge=0)] = 0.0
    """US dollars per million completion tokens."""
    placement: Literal["system", "user", "auto"] = "system"
    """Where instructions go that a prompt template has in its system turn: there, or at the start of the first user turn, for models that
    hardly follow a system turn. `auto`: where this model follows more of them, by `cai models check MODEL --placement`."""
    thinking: bool | None = None
    """Whether a model that can reason before it answers does so: sets `enable_thinking` (or `thinking`) in its chat template, here or on a
    vLLM, SGLang or llama.cpp server. None leaves it to the template."""
    trust_remote_code: bool = False
    """Whether to run Python code that comes with the model. Enable it only for models that you trust."""
    api_key_env: str = "CAI_API_KEY"
    """Name of the environment variable that holds the API key. Only for URLs. Never put the key itself into a recipe."""

    @property
    def is_server(self) -> bool:
        """Whether `path` is the URL of a server."""
        return self.path.startswith(("http://", "https://"))


class SamplingSpec(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling parameters."""

    max_tokens: Positive = 128
    """Maximum length of a completion, in tokens."""
    thinking_tokens: Annotated[int, Meta(ge=0)] = 0
    """Tokens that a model may think with before it answers, in addition to `max_tokens`. Set it for models that reason. Of a local model,
    each has its own limit. A server knows one limit, and gets the sum: an answer may then use what the reasoning left. With 0 both share
    `max_tokens`. The reasoning is kept in the records and shown in the report; it is not judged, and imitated only with `sft.thinking`. A
    reply that ends inside its reasoning is a failure."""
    temperature: Annotated[float, Meta(ge=0, le=5)] = 1.0
    """Sampling temperature. 0 is greedy decoding, 1 is the model's own distribution."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with at least this probability is sampled from. 1 keeps all."""


class SteadySampling(SamplingSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling parameters with a default temperature below 1."""

    temperature: Annotated[float, Meta(ge=0, le=5)] = 0.7
    """Sampling temperature. 0 is greedy decoding, 1 is the model's own distribution."""
