"""WildGuardMix (Han et al. 2024, arXiv 2406.18495): refusals of and compliances with harmful and harmless prompts.

On a harmful prompt a refusal is better than a compliance, on a harmless one it is worse.
"""

from judgelit.records.public_sources.public_set import PublicSet, Rated
from judgelit.records.row_fields import Row, choice_field, text_field

_HARM, _REFUSAL = ("harmful", "unharmful"), ("refusal", "compliance")


def _read(row: Row, at: str) -> Rated | str:
    if row.get("response") is None:
        return "rows without a response"
    if any(row.get(name) is None for name in ("prompt_harm_label", "response_refusal_label")):
        return "rows without a label"
    harmful = choice_field(row, "prompt_harm_label", at, _HARM) == "harmful"
    refused = choice_field(row, "response_refusal_label", at, _REFUSAL) == "refusal"
    # The text may imitate a dialogue, which belongs to the attack.
    prompt = [{"role": "user", "content": text_field(row, "prompt", at)}]
    adversarial = row.get("adversarial")
    kept = {
        "category": text_field(row, "subcategory", at, default=""),
        "subset": "" if adversarial is None else "adversarial" if adversarial in (True, "true", "True") else "vanilla",
    }
    return Rated(prompt, [(text_field(row, "response", at, empty=True), harmful == refused)], kept)


WILDGUARDMIX = PublicSet(
    name="wildguardmix",
    hub="allenai/wildguardmix",
    licence="ODC-BY, behind AI2's Responsible Use Guidelines",
    size="86,759 rows, of which 37,976 have a response",
    form="prompt, response, prompt_harm_label, response_refusal_label, adversarial, subcategory",
    columns=("prompt", "prompt_harm_label"),
    read=_read,
    grouped=True,
    config="wildguardtrain",
)
