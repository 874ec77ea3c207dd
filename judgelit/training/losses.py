"""The objectives, as pure functions of log-probabilities. Everything that a step computes of them is here.

To add a preference loss, write a function of `LogRatios` and `PreferenceLoss` and add its line to `LOSSES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from judgelit.batches.flat_batch import Batch, PreferenceBatch
from judgelit.errors import UserError
from judgelit.likelihood.logprobs import LogProbs, sums_of_rows


@dataclass(frozen=True)
class LossTerms:
    """The loss of a micro-batch and the quantities to log.

    loss: [n] float32, with its gradient: one value for each scored token (SFT), or each pair and general example (DPO).
    logged: further quantities by name, float32, without gradient. Each is averaged over its own values, and may have
        none. All micro-batches of a data set have the same names.
    """

    loss: Tensor
    logged: Mapping[str, Tensor]

    def counted(self, batch: Batch) -> "LossTerms":
        """These terms, or none if the batch is a placeholder. The gradient of the loss is then 0."""
        if batch.ids:
            return self
        return LossTerms(self.loss[:0], {name: values[:0] for name, values in self.logged.items()})


@dataclass(frozen=True)
class LogRatios:
    """log pi(y|x) - log pi_ref(y|x) of a batch of P pairs with K completions and N scored tokens.

    tokens: [N] float32, of each scored token.
    rows: [N] int64, the completion of each scored token.
    places: [N] int64, the place of each scored token in its completion, from 0.
    chosen_rows, rejected_rows: [P] int64, the pair's completion.
    chosen, rejected: [P] float32, summed over the pair's completion.
    chosen_tokens, rejected_tokens: [P] int64, tokens of the pair's completion.
    """

    tokens: Tensor
    rows: Tensor
    places: Tensor
    chosen_rows: Tensor
    rejected_rows: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @classmethod
    def of(cls, policy: LogProbs, reference: LogProbs, batch: PreferenceBatch) -> Self:
        """Compare the policy with the reference."""
        sums = policy.sums - reference.sums
        # The scored tokens of a completion are its last ones: under an empty prompt the first is not scored.
        ends = torch.bincount(policy.rows, minlength=len(policy.lengths)).cumsum(0)[policy.rows]
        to_the_end = ends - torch.arange(len(ends), device=ends.device)
        return cls(
            policy.tokens - reference.tokens,
            policy.rows,
            policy.lengths[policy.rows] - to_the_end,
            batch.chosen,
            batch.rejected,
            sums[batch.chosen],
            sums[batch.rejected],
            policy.lengths[batch.chosen],
            policy.lengths[batch.rejected],
        )

    @property
    def margin(self) -> Tensor:
        """[P] float32, the chosen completion's ratio minus the rejected one's."""
        return self.chosen - self.rejected

    def margin_of_first(self, counts: Tensor) -> Tensor:
        """[P] float32, the margin of the first `counts` ([P] int64) tokens of each pair's completions alone."""

        def summed(completion: Tensor) -> Tensor:
            counted = (self.rows == completion[:, None]) & (self.places < counts[:, None])  # [P, N]
            return torch.where(counted, self.tokens, 0.0).sum(-1)

        return summed(self.chosen_rows) - summed(self.rejected_rows)


def sigmoid_loss(ratios: LogRatios, settings: "PreferenceLoss") -> Tensor:
    """DPO, eq. 7 of Rafailov et al. 2023 (arXiv 2305.18290): -log sigmoid(beta * margin), [P].

    Label smoothing e is the assumed share of flipped labels, as in conservative DPO (Mitchell 2023, eq. 3):
    (1 - e) * loss(margin) + e * loss(-margin).
    """
    logits, flipped = settings.beta * ratios.margin, settings.label_smoothing
    return -(1 - flipped) * F.logsigmoid(logits) - flipped * F.logsigmoid(-logits)


def robust_loss(ratios: LogRatios, settings: "PreferenceLoss") -> Tensor:
    """Robust DPO, eq. 12 of Chowdhury et al. 2024 (arXiv 2403.00409), unbiased if a share e < 0.5 of labels is flipped.

    ((1 - e) * loss(margin) - e * loss(-margin)) / (1 - 2e), [P].
    """
    logits, flipped = settings.beta * ratios.margin, settings.label_smoothing
    return (flipped * F.logsigmoid(-logits) - (1 - flipped) * F.logsigmoid(logits)) / (1 - 2 * flipped)


def hinge_loss(ratios: LogRatios, settings: "PreferenceLoss") -> Tensor:
    """SLiC's hinge, max(0, 1 - beta * margin), [P] (arXiv 2305.10425; RSO, arXiv 2309.06657, eq. 7)."""
    return torch.relu(1 - settings.beta * ratios.margin)


def ipo_loss(ratios: LogRatios, settings: "PreferenceLoss") -> Tensor:
    """IPO, eq. 17 of Azar et al. 2023 (arXiv 2310.12036): (margin - 1 / (2 beta))^2, [P].

    The margin is of ratios divided by the tokens of each completion. Without that, the target 1 / (2 beta) would mean
    something else for every length.
    """
    margin = ratios.chosen / ratios.chosen_tokens - ratios.rejected / ratios.rejected_tokens
    return (margin - 1 / (2 * settings.beta)) ** 2


def ld_loss(ratios: LogRatios, settings: "PreferenceLoss") -> Tensor:
    """LD-DPO, length-desensitised DPO of Liu et al. 2024 (arXiv 2409.06411): -log sigmoid(beta * margin), [P].

    The margin is that of DPO, with another likelihood of a completion y of l tokens. With the public length l_p, the
    length of the pair's shorter completion, a weight alpha reduces what the longer one has beyond it:

        log p(y|x) = sum over i <= l_p of log p(y_i|x, y_<i) + alpha * sum over l_p < i <= l of log p(y_i|x, y_<i)

    The weight applies to the policy and to the reference alike, so the margin is 0 at the start of training. Some other
    implementations (TRL's) apply it to the policy alone, which gives long completions a reward before the first step.
    """
    shared = ratios.margin_of_first(torch.minimum(ratios.chosen_tokens, ratios.rejected_tokens))
    alpha = LD_ALPHA if settings.ld_alpha is None else settings.ld_alpha
    return -F.logsigmoid(settings.beta * (alpha * ratios.margin + (1 - alpha) * shared))


LOSSES: dict[str, Callable[[LogRatios, "PreferenceLoss"], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
    "robust": robust_loss,
    "ld": ld_loss,
}
"""Preference losses by name: log-ratios of P pairs to one value for each pair, [P] float32."""
_SMOOTHED = ("sigmoid", "robust")
"""Those that use label smoothing."""
LD_ALPHA = 0.5
"""Default of `ld_alpha`, the value that TRL's index of papers gives for LD-DPO."""
if TYPE_CHECKING:
    LossKind = str
else:
    LossKind = Literal[tuple(LOSSES)]


@dataclass(frozen=True)
class PreferenceLoss:
    """The preference loss and its weights, and the weight of general examples."""

    kind: LossKind = "sigmoid"
    """sigmoid is DPO, ld is length-desensitised DPO."""
    beta: float = 0.1
    """How strongly the policy is held to the reference; larger is stricter."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels, for sigmoid (conservative DPO) and robust; below 0.5."""
    nll_weight: float = 0.0
    """Weight of the length-normalised negative log-likelihood of the chosen completion."""
    ld_alpha: float | None = None
    """Weight of the tokens beyond the length of the pair's shorter completion, for ld: 1 is DPO, 0 ignores them. By
    default 0.5."""
    general_weight: float = 1.0
    """Weight of the length-normalised negative log-likelihood of a general example, which stands for a pair's loss."""

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise UserError(f"kind: found {self.kind!r}, expected one of {', '.join(LOSSES)}")
        if not self.beta > 0:
            raise UserError(f"beta: found {self.beta}, expected a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing: found {self.label_smoothing}, expected 0 <= label_smoothing < 0.5")
        if self.label_smoothing and self.kind not in _SMOOTHED:
            raise UserError(f"label_smoothing: has no meaning for the {self.kind} loss")
        if not self.nll_weight >= 0:
            raise UserError(f"nll_weight: found {self.nll_weight}, expected 0 or more")
        if not self.general_weight > 0:
            raise UserError(f"general_weight: found {self.general_weight}, expected more than 0")
        if self.ld_alpha is not None and self.kind != "ld":
            raise UserError(f"ld_alpha: has no meaning for the {self.kind} loss")
        if self.ld_alpha is not None and not 0 <= self.ld_alpha <= 1:
            raise UserError(f"ld_alpha: found {self.ld_alpha}, expected 0 <= ld_alpha <= 1")


def sft_loss(policy: LogProbs, batch: Batch) -> LossTerms:
    """The negative log-likelihood of each completion token, [N].

    Logged: `loss/TAG`, that of the examples with a tag.
    """
    nll = -policy.tokens
    return LossTerms(nll, _by_tag(nll, batch.tagged[policy.rows], batch))


def dpo_loss(policy: LogProbs, reference: LogProbs, batch: PreferenceBatch, settings: PreferenceLoss) -> LossTerms:
    """The loss of each pair and of each general example, [P + G].

    A pair's is the preference loss plus `nll_weight` times the length-normalised NLL of the chosen completion. This
    term is that of iterative RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1): -log pi(y_w|x) / |y_w|. The loss of a
    general example is `general_weight` times the length-normalised NLL of its completion.

    Logged, over the pairs: `nll`; `rewards/...`, beta times the log-ratios; `log_ratio`, the margin; `logps/...`,
    log pi(y|x); and `kl`, Schulman's k3 estimate of KL(pi || pi_ref), never negative, on the tokens of the data: the
    mean of exp(-r) - 1 + r over the log-ratios r of a completion's tokens, averaged over the pair. And `loss/TAG`, over
    the examples with a tag: the loss of pairs, the NLL of general examples before it is weighted.
    """
    ratios = LogRatios.of(policy, reference, batch)
    chosen_logps, rejected_logps = policy.sums[batch.chosen], policy.sums[batch.rejected]
    nll = -chosen_logps / ratios.chosen_tokens
    loss = LOSSES[settings.kind](ratios, settings) + settings.nll_weight * nll
    general = -policy.sums[batch.general] / policy.lengths[batch.general]
    of_tokens = (-ratios.tokens).exp() - 1 + ratios.tokens
    kl = sums_of_rows(of_tokens, ratios.rows, len(policy.lengths)) / policy.lengths
    logged = {
        "nll": nll,
        "rewards/chosen": settings.beta * ratios.chosen,
        "rewards/rejected": settings.beta * ratios.rejected,
        "rewards/margin": settings.beta * ratios.margin,
        "rewards/accuracy": (ratios.chosen > ratios.rejected).float(),
        "log_ratio": ratios.margin,
        "kl": (kl[batch.chosen] + kl[batch.rejected]) / 2,
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
        **_by_tag(torch.cat([loss, general]), batch.tagged, batch),
    }
    return LossTerms(
        torch.cat([loss, settings.general_weight * general]), {name: value.detach() for name, value in logged.items()}
    )


def _by_tag(values: Tensor, tagged: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The values of each tag, without gradient; `tagged` is the number of each value's tag in `batch.tags`."""
    return {f"loss/{tag}": values.detach()[tagged == number] for number, tag in enumerate(batch.tags)}
