"""The settings that decide what a run computes. A continued run must have those with which it was begun."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from judgelit.errors import UserError

_OF_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "limit_train_batches", "overfit_batches")
"""Settings of the Trainer that decide it. Accumulation and devices may change: the place in the data stays the same."""
_FREE = (
    "model.init_args.backbone.activation_checkpointing",
    "model.init_args.backbone.attention",
    "model.init_args.backbone.trust_remote_code",
    "model.init_args.layout",
)
"""Settings of the model that change how a value is computed, but not which one."""
_PATHS = ("model.init_args.backbone.name_or_path", "model.init_args.backbone.adapter")


def deciding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved configuration of `judgelit fit` that decide what it computes, by dotted names.

    The data module compares its own: see `TrainingDataModule.load_state_dict`.
    """
    trainer = config.get("trainer") or {}
    chosen = {
        "seed_everything": config.get("seed_everything"),
        "trainer": {name: trainer.get(name) for name in _OF_TRAINER},
        "model": config.get("model"),
    }
    return {name: value for name, value in _flat(chosen) if name not in _FREE}


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the settings of a checkpoint with those of the run that is to continue from it.

    Raises:
        UserError: One of them differs; the first is named.
    """
    for name in dict.fromkeys([*saved, *now]):
        old, new = saved.get(name), now.get(name)
        if old != new and not (name in _PATHS and old and new and Path(old).resolve() == Path(new).resolve()):
            raise UserError(
                f"{name.replace('.init_args', '')}: found {_shown(new)}, expected {_shown(old)}, with which the run of "
                "the checkpoint was begun; give that value, or start a new run in another folder"
            )


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner
