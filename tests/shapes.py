"""Tiny architectures: each with the chat format of its tokenizer and a function that makes its configuration."""

from collections.abc import Callable

from transformers import (
    Gemma2Config,
    GemmaConfig,
    GPTNeoXConfig,
    JambaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

Shapes = dict[str, tuple[str, Callable[..., PretrainedConfig]]]

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES: Shapes = {
    "llama": ("llama3", lambda **ids: LlamaConfig(**SMALL, num_key_value_heads=2, **ids)),
    "qwen2": ("chatml", lambda **ids: Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True, **ids)),
    "gemma": ("gemma", lambda **ids: GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8, **ids)),
    "gpt_neox": ("pad_is_eos", lambda **ids: GPTNeoXConfig(**SMALL, **ids)),
    "qwen3": ("chatml", lambda **ids: Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, **ids)),
}
# Models that mix tokens by their index in the row, or whose attention does not support a block mask.
UNSHAREABLE: Shapes = {
    "sliding_window": ("mistral", lambda **ids: MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=8, **ids)),
    "soft_capped": (
        "gemma",
        lambda **ids: Gemma2Config(
            **SMALL,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            layer_types=["full_attention"] * 2,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=5.0,
            **ids,
        ),
    ),
    "linear_attention": (
        "chatml",
        lambda **ids: Qwen3NextConfig(
            **SMALL,
            num_key_value_heads=2,
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=4,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            **ids,
        ),
    ),
    "state_space": (
        "llama3",
        lambda **ids: JambaConfig(
            **SMALL,
            num_key_value_heads=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=2,
            num_experts_per_tok=1,
            **ids,
        ),
    ),
    "recurrent": (
        "gemma",
        lambda **ids: RecurrentGemmaConfig(**{**SMALL, "num_hidden_layers": 3}, attention_window_size=8, **ids),
    ),
}
