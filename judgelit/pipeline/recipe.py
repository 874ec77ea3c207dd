"""Settings of `judgelit run`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse.typing import Path_fr, register_type

from judgelit.atomic import check_file_names
from judgelit.errors import UserError
from judgelit.evaluation.general.settings import General
from judgelit.generation.serving import Serving
from judgelit.judging.prompts import Templates
from judgelit.records.sources import Sources
from judgelit.shipped_configs import shipped
from judgelit.synthesis.enhancement import Enhancement
from judgelit.synthesis.teachers import Teacher
from judgelit.synthesis.warmup import Warmup


class ConfigFile(Path_fr):
    """Path of a configuration file; the name of a shipped configuration stands for its path."""

    def __init__(self, path: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(path, str) and (known := shipped().get(path.removesuffix(".yaml"))) and not Path(path).is_file():
            path = str(known)
        super().__init__(path, *args, **kwargs)


register_type(ConfigFile, serializer=str, deserializer=ConfigFile)


TRAIN = "train"
"""Name of the training pairs, beside those of the held-out sets."""
GENERAL_DATA = "general_data"
"""Name of the general examples that are mixed with the training data."""


@dataclass(frozen=True)
class Recipe:
    """Train a judge on preference pairs and measure it: warm-up by SFT, enhancement by DPO, evaluation, export."""

    output: str
    """Folder of the run."""
    train: Sources
    """Labelled pairs to train on."""
    sets: dict[str, Sources]
    """Held-out pairs by name. Their questions are left out of `train`."""
    teacher: Teacher
    """Writes the judgments of the warm-up."""
    sft: ConfigFile
    """Configuration of `judgelit fit` for the warm-up: a file, or the name of a shipped one. The run sets its training
    data."""
    dpo: ConfigFile
    """Configuration of `judgelit fit` for the enhancement: a file, or the name of a shipped one. The run sets its
    training data and its starting model."""
    decontaminate: bool = False
    """Also leave out training pairs whose question shares 13 words in a row with a held-out one. Not for generated
    questions, which share the words of their form."""
    model: str | None = None
    """The model to train, in place of the one that the file of `sft` names."""
    templates: Templates = Templates()  # noqa: RUF009 (frozen)
    """Judge prompts for training and evaluation; one is drawn for each pair."""
    warmup: Warmup = Warmup()  # noqa: RUF009 (frozen)
    """How judgments for the warm-up are asked for and chosen."""
    enhancement: Enhancement = Enhancement()  # noqa: RUF009 (frozen)
    """How judgments of the warm judge are sampled and paired."""
    general: General | None = None
    """Also measure the general ability of the base model and of the judge after each training. By default it is not
    measured."""
    general_data: str | None = None
    """File of general examples (SFT data in any form) to mix with the data of both trainings, which keep general
    ability. By default what the files of `sft` and `dpo` name as `general`, where weights can be given too."""
    warmup_pairs: int | None = None
    """Ask the teacher about only this many pairs of `train`, drawn at random."""
    enhancement_pairs: int | None = None
    """Sample judgments of only this many pairs of `train`, drawn at random; those that the warm-up has left out come
    first."""
    max_new_tokens: int = 1024
    """Longest judgment in evaluation, in tokens."""
    batch_size: int = 64
    """Judgments generated at once."""
    serving: Serving | None = None
    """A server program, such as vLLM, that the run starts for each judge to sample from it and to evaluate it. By
    default the judge is loaded in this process."""
    device: str | None = None
    """Device of all stages: auto (a GPU if there is one), cpu, cuda, cuda:1 (the second GPU), or mps. By default the
    fits use what their configurations say, and all other stages a GPU if there is one."""
    seed: int = 0
    """Seed of generated data, random weights, the sampler and sampling."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise UserError("sets: found none, expected at least one set of held-out pairs")
        check_file_names("sets", self.sets, taken=[TRAIN, GENERAL_DATA])
        for name in ("warmup_pairs", "enhancement_pairs", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: found {value}, expected 1 or more")
