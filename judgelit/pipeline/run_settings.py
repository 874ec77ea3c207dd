"""The settings that decide what a recipe computes. A continued run must have those with which it was begun."""

from collections.abc import Mapping
from typing import Any

_HERE = ("batch_size", "device")
"""How a model on this machine generates."""
_ASKED = tuple(
    f"requests.{name}"
    for name in (
        *("concurrency", "requests_per_minute", "tokens_per_minute", "retries", "backoff", "deadline"),
        *("prompt_price", "completion_price", "budget", "refused", "answers_as", "key_variable"),
    )
)
"""How a server is asked, and for which prompts; not what its answers depend on."""
_FREE = {
    *_HERE,
    *(f"teacher.init_args.{name}" for name in (*_HERE, "attention", "trust_remote_code", *_ASKED)),
    *(f"serving.{name}" for name in ("command", "patience", *_ASKED)),
}
"""Settings that change how an answer is computed or asked for, but not which one. The identity of an engine, by which
its journal knows an answer, has none of them."""
_ADDRESSES = {"teacher.init_args.endpoint", "serving.endpoint"}


def deciding_settings(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The settings of a resolved recipe that decide its results, without those that are null.

    An address may change, but not from none to one: a server's answers are not those of a model that is loaded here.

    Args:
        config: The settings, or a group of them.
        above: Key of the group, with a dot at its end.
    """
    deciding: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{above}{name}"
        if key in _ADDRESSES and value is not None:
            deciding[name] = "a server"
        elif key not in _FREE and value is not None:
            deciding[name] = deciding_settings(value, f"{key}.") if isinstance(value, Mapping) else value
    return deciding
