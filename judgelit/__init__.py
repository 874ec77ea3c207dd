"""judgelit trains generative judges: language models that compare two answers and reason to a verdict."""

from importlib import import_module
from typing import Any

from judgelit.errors import UserError

__version__ = "0.1.0"

_ROOMS = {
    "Backbone": "models.backbone",
    "BenchmarkMetric": "evaluation.benchmark_metric",
    "DPODataModule": "batches.datamodules",
    "DPOModule": "training.dpo",
    "EngineTeacher": "synthesis.teachers",
    "FSDP2": "training.fsdp",
    "FileSource": "records.sources",
    "GeneralAbility": "evaluation.general.callback",
    "GlobalBatch": "training.global_batch",
    "JudgeDataModule": "batches.judge_datamodule",
    "JudgeEvaluation": "evaluation.callbacks",
    "LoRA": "models.lora",
    "Mixture": "records.sources",
    "PagedAdamW8bit": "training.optimizers",
    "PreferenceLoss": "training.losses",
    "PublicSource": "records.public_sources.source",
    "SFTDataModule": "batches.datamodules",
    "SFTModule": "training.sft",
    "TaskAnswers": "synthesis.tasks.sources",
    "TaskJudgments": "synthesis.tasks.sources",
    "TaskPairs": "synthesis.tasks.pairs",
    "TaskPreferences": "synthesis.tasks.sources",
    "TaskTeacher": "synthesis.teachers",
    "WarmupCosine": "training.schedule",
}
"""Public names, each with the module that defines it. It is imported when the name is first asked for."""

__all__ = ["UserError", "__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'judgelit' has no attribute {name!r}")
    return getattr(import_module(f"judgelit.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
