"""Unpaired UTF-16 surrogates, which JSON can spell and UTF-8, Parquet and tokenizers cannot hold, become U+FFFD."""

import json
import re

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def replace_surrogates(text: str) -> str:
    """`text` with each pair of surrogates joined to its character and U+FFFD for each unpaired one."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def dump_json(value: object) -> str:
    """`value` as one line of JSON without surrogates."""
    return replace_surrogates(json.dumps(value, ensure_ascii=False))


def replace_surrogates_in(value: object, text: str, start: int = 0, end: int | None = None) -> object:
    """`value`, decoded from `text[start:end]`, without surrogates."""
    if _ESCAPED_SURROGATE.search(text, start, len(text) if end is None else end):
        return json.loads(dump_json(value))
    return value
