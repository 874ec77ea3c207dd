"""The fingerprint changes with any value and position of a weight, and with nothing else."""

from typing import Any

import pytest
import torch

from judgelit.models.backbone import Backbone
from judgelit.models.fingerprint import fingerprint
from judgelit.models.lora import LoRA


class TestFingerprint:
    def test_equal_weights_equal_fingerprint(self, llama: str) -> None:
        assert fingerprint(Backbone(llama).build()) == fingerprint(Backbone(llama).build())

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_any_change_of_any_weight_changes_it(self, llama: str, dtype: Any) -> None:
        model = Backbone(llama, dtype).build()
        seen = {fingerprint(model)}
        with torch.no_grad():
            for count, weight in enumerate(model.parameters(), start=2):
                one = weight.view(-1)[count % weight.numel() : count % weight.numel() + 1]
                one.copy_(torch.nextafter(one, one + 1))
                seen.add(fingerprint(model))
                assert len(seen) == count

    def test_positions_matter(self, llama: str) -> None:
        model: Any = Backbone(llama).build()
        before = fingerprint(model)
        with torch.no_grad():
            weight = model.lm_head.weight
            weight[[0, 1]] = weight[[1, 0]]
        assert fingerprint(model) != before

    def test_names_can_be_left_out(self, llama: str) -> None:
        model: Any = Backbone(llama, lora=LoRA(r=2)).build()
        before = fingerprint(model, skip=".default."), fingerprint(model)
        with torch.no_grad():
            next(weight for name, weight in model.named_parameters() if "lora_" in name).add_(1)
        assert fingerprint(model, skip=".default.") == before[0]
        assert fingerprint(model) != before[1]
