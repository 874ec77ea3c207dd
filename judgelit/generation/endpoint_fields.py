"""The fields of a request to an endpoint, and what is left out because a server refuses it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from judgelit.generation.sampling import Sampling
from judgelit.records.row_fields import Message
from judgelit.records.unicode import replace_surrogates

_MENTIONS = {
    "top_logprobs": re.compile(r"log_?prob", re.I),
    "n": re.compile(r"(?<![\w-])n(?![\w-])|\bbest_of\b|\bchoices?\b", re.I),
    "seed": re.compile(r"\bseed\b", re.I),
    "top_p": re.compile(r"\btop_p\b", re.I),
    "max_tokens": re.compile(r"\bmax_completion_tokens\b", re.I),
}
"""Optional fields, in the sequence in which they are left out, and how a server's error speaks of them."""
_WITHOUT = {
    "top_logprobs": "takes no logprobs; verdicts have no margin",
    "n": "gives one answer for any n; each sample is a request",
    "seed": "takes no seed; samples cannot be repeated",
    "top_p": "takes no top_p of 1",
    "max_tokens": "takes max_completion_tokens for max_tokens",
}

_HIDDEN = "\u200b"
"""A space without width. With it inside, a control token is ordinary text that reads the same."""
_CONTROL = re.compile(
    r"<(?=\|[^\s<>|]{1,60}\|>|｜[^\s<>｜]{1,60}｜>|/?s>|(?:start|end)_of_turn>|end_of_utterance>|</?SYS>>"
    r"|(?:bos|eos|pad|unk|sop|eop|eoa)>|(?:BOS|EOS)_TOKEN>|(?:extra_id|reserved)_\d{1,5}>"
    r"|seed:[^<>\s]{1,40}>|\|turn>|turn\|>|(?:start|end)_of_image>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK)\]|gMASK\]|\|[^\s\[\]|]{1,60}\|\])"
)
"""The first character of each text that is a control token in one of the usual chat formats."""
_WAS_CONTROL = re.compile(rf"[<\[]{_HIDDEN}")


@dataclass
class Fields:
    """Makes the fields of requests, and knows which ones the endpoint takes; it lasts as long as the engine."""

    model: str
    top_logprobs: int
    refused: set[str] = field(default_factory=set)
    """Optional fields that are no longer sent."""
    taken: set[str] = field(default_factory=set)
    """Optional fields with which a request has had an answer."""
    several: bool = False
    """Whether a reply had more than one answer."""
    spelled: bool = False
    """Whether it was said that a text spells a control token."""

    def make(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        n: int,
        seed: int,
        left_out: set[str],
    ) -> dict[str, Any]:
        """Arguments for the client.

        A server reads the text of a message together with the chat template, and cannot tell a control token of the
        template from one that the text spells. So a space without width is put into each that a message spells.

        Args:
            messages: The conversation.
            sampling: Length, temperature, top-p.
            n: Answers to ask for.
            seed: The request's seed.
            left_out: Optional fields that this request tries without.
        """
        without = self.refused | left_out
        clean = [{name: replace_surrogates(text) for name, text in message.items()} for message in messages]
        plain: list[Message] = [{**one, "content": _CONTROL.sub(rf"\g<0>{_HIDDEN}", one["content"])} for one in clean]
        made: dict[str, Any] = {"model": self.model, "messages": plain, "temperature": sampling.temperature}
        made["max_completion_tokens" if "max_tokens" in without else "max_tokens"] = sampling.max_new_tokens
        if "seed" not in without:
            made["seed"] = seed
        # vLLM takes top_p from the model's generation_config.json if a request has none.
        if sampling.temperature > 0 and (sampling.top_p != 1 or "top_p" not in without):
            made["top_p"] = sampling.top_p
        if n > 1 and "n" not in without:
            made["n"] = n
        if self.top_logprobs and "top_logprobs" not in without:
            made |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return made

    def to_leave_out(self, sent: Mapping[str, Any], said: str) -> str | None:
        """The optional field that a refused request should be tried without; None if it is not about one.

        Args:
            sent: The fields of the request.
            said: The server's error.
        """
        untried = [name for name in _MENTIONS if name in sent and name not in self.taken]
        if sent.get("top_p", 1) != 1 and "top_p" in untried:
            untried.remove("top_p")
        named = [name for name in untried if _MENTIONS[name].search(said)]
        # A server that does not say why it refuses, and has never answered, is tried without each.
        return named[0] if named else untried[0] if untried and not self.taken else None

    def answered(self, sent: Mapping[str, Any], left_out: set[str]) -> list[str]:
        """Note that a request had an answer. Returns what there is to say of fields that are no longer sent."""
        self.taken |= _MENTIONS.keys() & sent.keys()
        new = left_out - self.refused
        self.refused |= new
        said = [_WITHOUT[name] for name in sorted(new)]
        if not self.spelled and any(_WAS_CONTROL.search(message["content"]) for message in sent["messages"]):
            self.spelled = True
            said.append("texts spell control tokens, such as <|im_end|>; they are sent with a space of no width inside")
        return said

    def count_answers(self, asked: int, found: int) -> str | None:
        """Note how many answers a reply has. Returns what there is to say if `n` is no longer sent.

        A server may limit n, or answer once with less; `n` is left out only if no reply had more than one answer.

        Args:
            asked: The request's `n`.
            found: Answers in the reply.
        """
        self.several = self.several or found > 1
        if self.several or found >= asked or "n" in self.refused:
            return None
        self.refused.add("n")
        return _WITHOUT["n"]


def request_seed(seed: int, messages: Sequence[Message], sample: int) -> int:
    """The seed of a request, 31 bits: it depends on the run's seed, the conversation and the number of the sample."""
    text = json.dumps([seed, sample, list(messages)], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


_SUFFIX = re.compile(r"[-@:_.](?:main|latest|v?\d[\d.-]*|[0-9a-f]{7,})")
"""What servers append to a model's name: a date, a version or a revision."""


def is_same_model(asked: str, answered: str) -> bool:
    """Whether a server's answer names the model that was asked for, by its whole name or the last part of it."""
    one, other = asked.lower().rstrip("/"), answered.lower().rstrip("/")
    for left, right in ((one, other), (one.rpartition("/")[2], other.rpartition("/")[2])):
        if left and right.startswith(left) and (left == right or _SUFFIX.fullmatch(right[len(left) :])):
            return True
    return False


_UNKNOWN_MODEL = re.compile(
    r"\bmodel\b.{0,80}\b(?:not (?:exist|found|available|supported|loaded)|unknown|invalid)"
    r"|\b(?:invalid|unknown|unsupported|no such) model\b|model_not_found",
    re.I,
)


def is_about_the_model(said: str) -> bool:
    """Whether a server's error says that it does not have the model."""
    return _UNKNOWN_MODEL.search(said) is not None
