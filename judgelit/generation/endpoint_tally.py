"""Counts, tokens and money of one call of an endpoint."""

from collections import Counter
from dataclasses import dataclass, field

from judgelit.generation.requests import Requests


@dataclass
class Tally:
    """What a call has asked, received and spent."""

    requests: Requests
    prompts: int = 0
    answered: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    """Repeated requests by reason."""
    lost: Counter[str] = field(default_factory=Counter)
    """Prompts without an answer by reason."""
    prompt_tokens: int = 0
    new_tokens: int = 0
    reserved: float = 0.0
    """Most that the answers which are still missing may cost."""

    def price(self, prompt_tokens: float, new_tokens: float) -> float:
        """What these tokens cost."""
        prices = self.requests.prompt_price or 0.0, self.requests.completion_price or 0.0
        return (prompt_tokens * prices[0] + new_tokens * prices[1]) / 1e6

    @property
    def spent(self) -> float:
        """What the tokens so far have cost."""
        return self.price(self.prompt_tokens, self.new_tokens)

    def covers(self, cost: float) -> bool:
        """Whether the budget covers this cost beside all that is spent and reserved."""
        budget = self.requests.budget
        return budget is None or self.spent + self.reserved + cost <= budget

    def __str__(self) -> str:
        """The counts on one line."""
        parts = [f"{self.answered} of {self.prompts} prompts answered"]
        if self.repeated:
            parts.append(f"{self.repeated.total()} requests repeated ({_by_reason(self.repeated)})")
        if self.lost:
            parts.append(f"{self.lost.total()} prompts failed ({_by_reason(self.lost)})")
        parts.append(f"{self.prompt_tokens} prompt tokens and {self.new_tokens} new ones")
        if self.requests.prompt_price is not None or self.requests.completion_price is not None:
            parts.append(f"{self.spent:.4g} spent" + (f" of {self.requests.budget:g}" if self.requests.budget else ""))
        return ", ".join(parts)


def _by_reason(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
