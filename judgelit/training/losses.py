"""Preference losses as pure functions of log-probabilities.

Notation, for P pairs (x, y_w, y_l) of a prompt, its chosen and its rejected completion:

    chosen_ratio   = log pi(y_w|x) - log pi_ref(y_w|x)      [P] float32
    rejected_ratio = log pi(y_l|x) - log pi_ref(y_l|x)      [P] float32
    margin         = chosen_ratio - rejected_ratio          [P] float32

Every loss gives one value a pair, [P] float32; the mean is the caller's, who knows the whole batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from judgelit.errors import UserError

LossKind = Literal["sigmoid", "ipo", "hinge", "robust"]


def sigmoid_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO, eq. 7 of Rafailov et al. 2023 (arXiv 2305.18290): -log sigmoid(beta * margin).

    `label_smoothing` e is the assumed share of flipped labels, as in conservative DPO (Mitchell 2023, eq. 3):
    (1 - e) * loss(margin) + e * loss(-margin).
    """
    logits = beta * margin
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def robust_loss(margin: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO, eq. 12 of Chowdhury et al. 2024 (arXiv 2403.00409): unbiased under labels flipped with rate e < 0.5.

    ((1 - e) * loss(margin) - e * loss(-margin)) / (1 - 2e).
    """
    logits = beta * margin
    flipped = label_smoothing * F.logsigmoid(-logits) - (1 - label_smoothing) * F.logsigmoid(logits)
    return flipped / (1 - 2 * label_smoothing)


def hinge_loss(margin: Tensor, beta: float) -> Tensor:
    """SLiC's hinge on the normalised margin (Zhao et al. 2023, arXiv 2305.10425; RSO, arXiv 2309.06657, eq. 7)."""
    return torch.relu(1 - beta * margin)


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """IPO, eq. 17 of Azar et al. 2023 (arXiv 2310.12036): (margin - 1 / (2 beta))^2.

    Here `margin` is of ratios divided by each completion's own number of tokens, without which the target 1 / (2 beta)
    would mean something else for every length.
    """
    return (margin - 1 / (2 * beta)) ** 2


def length_normalised_nll(chosen_logprob: Tensor, chosen_tokens: Tensor) -> Tensor:
    """-log pi(y_w|x) / |y_w|, the term of iterative RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1), [P] float32."""
    return -chosen_logprob / chosen_tokens


@dataclass(frozen=True)
class PreferenceLoss:
    """Which preference loss, and its weights."""

    kind: LossKind = "sigmoid"
    """sigmoid (DPO), ipo, hinge or robust."""
    beta: float = 0.1
    """How strongly the policy is held to the reference; larger is stricter."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels, for sigmoid (conservative DPO) and robust; below 0.5."""
    nll_weight: float = 0.0
    """Weight of the length-normalised negative log-likelihood of the chosen completion."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(LossKind):
            raise UserError(f"kind: found {self.kind!r}, expected one of {', '.join(get_args(LossKind))}")
        if not self.beta > 0:
            raise UserError(f"beta: found {self.beta}, expected a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing: found {self.label_smoothing}, expected 0 <= label_smoothing < 0.5")
        if self.label_smoothing and self.kind not in ("sigmoid", "robust"):
            raise UserError(f"label_smoothing: has no meaning for the {self.kind} loss")
        if not self.nll_weight >= 0:
            raise UserError(f"nll_weight: found {self.nll_weight}, expected 0 or more")

    def __call__(
        self, chosen_ratio: Tensor, rejected_ratio: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor
    ) -> Tensor:
        """The preference loss of each pair, [P] float32, without the NLL term.

        Args:
            chosen_ratio: [P] float32, log-ratio of policy to reference, summed over the chosen completion.
            rejected_ratio: [P] float32, the same of the rejected completion.
            chosen_tokens: [P], tokens of the chosen completion.
            rejected_tokens: [P], tokens of the rejected completion.
        """
        if self.kind == "ipo":
            return ipo_loss(chosen_ratio / chosen_tokens - rejected_ratio / rejected_tokens, self.beta)
        margin = chosen_ratio - rejected_ratio
        if self.kind == "hinge":
            return hinge_loss(margin, self.beta)
        smoothed: Callable[[Tensor, float, float], Tensor] = sigmoid_loss if self.kind == "sigmoid" else robust_loss
        return smoothed(margin, self.beta, self.label_smoothing)
