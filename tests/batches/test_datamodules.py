"""SFTDataModule, DPODataModule, JudgeDataModule: splits, batches, wrong settings, and exact resume."""

import itertools
import logging
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader

from judgelit.batches.datamodules import (
    DPODataModule,
    JudgeData,
    JudgeDataModule,
    SFTDataModule,
    TrainingDataModule,
)
from judgelit.batches.flat_batch import PreferenceBatch
from judgelit.batches.token_store import TokenRows
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.models.backbone import Backbone
from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.sources import FileSource, Mixture, read_pairs, split_by_group
from judgelit.training.dpo import DPOModule
from judgelit.training.finetuning import FineTuningModule
from judgelit.training.schedule import WarmupCosine
from judgelit.training.sft import SFTModule
from tests.support import make_pair, short_templates


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave the user's cache alone."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path / "datasets" / "judgelit"


def sft_example(number: int, question: str | None = None, completion: str = "") -> SFTExample:
    prompt = ({"role": "user", "content": f"question {number}" + "?" * (number % 5)},)
    meta = {"question": question} if question else {}
    return SFTExample(prompt, completion or f"answer {number}", f"e{number}", meta)


def preference(number: int) -> PreferenceExample:
    prompt = ({"role": "user", "content": f"question {number}" + "?" * (number % 5)},)
    return PreferenceExample(prompt, f"right {number}", f"wrong {number}", {"pair_id": f"e{number}"})


def sft_file(path: Path, numbers: range, **more: Any) -> str:
    write_records(path, [sft_example(number, **more) for number in numbers])
    return str(path)


def read(data: TrainingDataModule, stage: str = "fit") -> TrainingDataModule:
    data.setup(stage)
    return data


def ids(loader: Any) -> list[str]:
    loaders = loader if isinstance(loader, list) else [loader]
    return [id for batches in loaders for batch in batches for id in batch.ids]


def epoch(data: TrainingDataModule, number: int) -> list[str]:
    loader = data.train_dataloader()
    loader.batch_sampler.resume(number, 0)  # type: ignore[union-attr]
    return ids(loader)


# What is read, and how it is split.


def test_every_example_comes_once_an_epoch_and_in_another_order_each_time(tmp_path: Path, llama: str) -> None:
    data = read(SFTDataModule(llama, sft_file(tmp_path / "a.jsonl", range(23)), batch_size=4))
    epochs = [epoch(data, number) for number in range(3)]
    assert all(sorted(seen) == sorted(f"e{number}" for number in range(23)) for seen in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epoch(data, 1) == epochs[1]
    other = read(SFTDataModule(llama, str(tmp_path / "a.jsonl"), batch_size=4, seed=1))
    assert epoch(other, 0) != epochs[0]
    assert data.val_dataloader() == []


def test_a_held_out_question_is_held_out_in_both_orders_and_under_every_prompt(tmp_path: Path, llama: str) -> None:
    # Four examples to a question: two orders, two templates.
    examples = [sft_example(number, question=f"key{number // 4}") for number in range(160)]
    write_records(tmp_path / "a.jsonl", examples)
    question = {example.pair_id: example.group for example in examples}
    data = read(SFTDataModule(llama, str(tmp_path / "a.jsonl"), val_fraction=0.25, batch_size=8))
    train, val = ids(data.train_dataloader()), ids(data.val_dataloader())
    assert sorted(train + val) == sorted(question)
    assert not {question[id] for id in train} & {question[id] for id in val}
    assert 4 <= len({question[id] for id in val}) <= 18
    again = read(SFTDataModule(llama, str(tmp_path / "a.jsonl"), val_fraction=0.25, batch_size=8), "validate")
    assert ids(again.val_dataloader()) == val
    other = read(SFTDataModule(llama, str(tmp_path / "a.jsonl"), val_fraction=0.25, seed=3))
    assert set(ids(other.val_dataloader())) != set(val)


def test_validation_files_keep_their_order(tmp_path: Path, llama: str) -> None:
    train, val = sft_file(tmp_path / "a.jsonl", range(9)), sft_file(tmp_path / "b.jsonl", range(20, 27))
    data = read(SFTDataModule(llama, train, val=val, test=val, batch_size=2))
    assert ids(data.val_dataloader()) == [f"e{number}" for number in range(20, 27)]
    assert ids(read(data, "test").test_dataloader()) == [f"e{number}" for number in range(20, 27)]


def test_a_mixture_visits_each_source_by_its_weight(tmp_path: Path, llama: str) -> None:
    files = [
        FileSource(sft_file(tmp_path / "half.jsonl", range(0, 20)), weight=0.5),
        FileSource(sft_file(tmp_path / "more.jsonl", range(20, 30)), weight=2.5),
        sft_file(tmp_path / "once.jsonl", range(30, 36)),
    ]
    data = read(SFTDataModule(llama, files, batch_size=4))
    halves = []
    for number in range(2):
        seen = Counter(epoch(data, number))
        by_source = [[f"e{n}" for n in numbers] for numbers in (range(20), range(20, 30), range(30, 36))]
        visits = [[seen[id] for id in source] for source in by_source]
        assert sorted(visits[0]) == [0] * 10 + [1] * 10
        assert sorted(visits[1]) == [2] * 5 + [3] * 5
        assert visits[2] == [1] * 6
        halves.append([id for id in by_source[0] if seen[id]])
    assert halves[0] != halves[1], "another half each epoch"


def test_too_long_examples_are_left_out_and_counted(
    tmp_path: Path, llama: str, caplog: pytest.LogCaptureFixture
) -> None:
    examples = [sft_example(number, completion="x" * (400 if number % 3 == 0 else 5)) for number in range(9)]
    write_records(tmp_path / "a.jsonl", examples)
    with caplog.at_level(logging.INFO):
        data = read(SFTDataModule(llama, str(tmp_path / "a.jsonl"), max_length=200))
    assert sorted(ids(data.train_dataloader())) == ["e1", "e2", "e4", "e5", "e7", "e8"]
    assert "train: 6 examples" in caplog.text and "3 skipped as longer than 200 tokens" in caplog.text


def test_only_too_long_examples_are_refused_with_the_lengths(tmp_path: Path, llama: str) -> None:
    path = sft_file(tmp_path / "a.jsonl", range(4), completion="word " * 400)
    with pytest.raises(UserError) as error:
        read(SFTDataModule(llama, path))
    message = str(error.value)
    found = re.fullmatch(
        r"data\.max_length: found 1024 \(the context of the model\), expected more: all 4 examples of data\.train are "
        r"longer, of (\d+) to (\d+) tokens; shorten them, or take a model with a longer context",
        message,
    )
    assert found and 1024 < int(found[1]) <= int(found[2])
    # If the user has set the limit, the model is not to blame.
    with pytest.raises(
        UserError, match=r"^data\.max_length: found 9, expected more: .*; raise it: the model takes 1024$"
    ):
        read(SFTDataModule(llama, path, max_length=9))


def test_dpo_rows_hold_both_completions_of_a_prompt(tmp_path: Path, llama: str) -> None:
    write_records(tmp_path / "a.jsonl", [preference(number) for number in range(5)])
    data = read(DPODataModule(llama, str(tmp_path / "a.jsonl"), batch_size=5))
    (batch,) = data.train_dataloader()
    assert (batch.pairs, sorted(batch.ids)) == (5, [f"e{number}" for number in range(5)])
    for sides, word in ((batch.chosen, "right"), (batch.rejected, "wrong")):
        for name, number in zip(batch.ids, sides.tolist(), strict=True):
            completion = batch.targets[batch.rows == number].tolist()
            assert data.tokenizer.decode(completion) == f"{word} {name[1:]}"


def test_general_examples_are_mixed_with_pairs(tmp_path: Path, llama: str, caplog: pytest.LogCaptureFixture) -> None:
    write_records(tmp_path / "a.jsonl", [preference(number) for number in range(20)])
    general = sft_file(tmp_path / "g.jsonl", range(100, 116))
    mixture = Mixture([FileSource(general, weight=0.5), FileSource(general, tag="code")])
    settings: dict[str, Any] = {"val_fraction": 0.3, "batch_size": 4}
    with caplog.at_level(logging.INFO):
        data = read(DPODataModule(llama, str(tmp_path / "a.jsonl"), general=mixture, **settings))
    assert "general: " in caplog.text
    rows = {part: data.rows(part) for part in ("train", "val")}
    held_out = {row.id for row in rows["val"]} & {f"e{number}" for number in range(100, 116)}
    assert 0 < len(held_out) < 16 and rows["train"].tags == rows["val"].tags == ("general", "code")
    batches: list[PreferenceBatch] = list(data.train_dataloader())
    seen = Counter(name for batch in batches for name in batch.ids)
    count = 16 - len(held_out)
    assert sum(seen[f"e{number}"] for number in range(100, 116)) == count + round(count / 2)
    assert all(seen[row.id] == 1 for row in rows["train"].pairs)
    assert all(batch.tags == ("general", "code") for batch in batches), "also where no row has a tag"
    by_tag = sum(torch.bincount(batch.tagged + 1, minlength=3) for batch in batches)
    assert by_tag.tolist() == [len(rows["train"].pairs), round(count / 2), count]  # type: ignore[union-attr]
    assert sum(batch.pairs for batch in batches) == len(rows["train"].pairs)
    assert [row.id for row in rows["train"].pairs] == [row.id for row in rows["train"]][: len(rows["train"].pairs)]
    # Without general data, the pairs and their order in the store are the same.
    alone = read(DPODataModule(llama, str(tmp_path / "a.jsonl"), **settings)).rows("train")
    assert list(alone) == list(rows["train"].pairs) and alone.fingerprint == rows["train"].pairs.fingerprint
    assert alone.tags == ()


def test_a_run_is_not_continued_with_other_general_data(tmp_path: Path, llama: str) -> None:
    write_records(tmp_path / "a.jsonl", [preference(number) for number in range(6)])
    general = sft_file(tmp_path / "g.jsonl", range(4))

    def data(**more: Any) -> TrainingDataModule:
        made = read(DPODataModule(llama, str(tmp_path / "a.jsonl"), **more))
        made.trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
        return made

    state = {"epoch": 0, "batches": 1, "made_from": data(general=general)._made_from}
    data(general=general).load_state_dict(state)
    # A tag does not change the batches.
    data(general=FileSource(general, tag="chat")).load_state_dict(state)
    for other in ({}, {"general": FileSource(general, weight=2)}):
        with pytest.raises(UserError, match=r"data\.train: found .*, expected .*with which the run"):
            data(**other).load_state_dict(state)


def test_general_examples_that_cannot_be_trained_on_are_refused(tmp_path: Path, llama: str) -> None:
    write_records(tmp_path / "a.jsonl", [preference(number) for number in range(6)])
    with pytest.raises(UserError, match=r"a\.jsonl:1: found .*expected an SFT example"):
        read(DPODataModule(llama, str(tmp_path / "a.jsonl"), general=str(tmp_path / "a.jsonl")))
    few = FileSource(sft_file(tmp_path / "f.jsonl", range(4)), weight=0.1)
    with pytest.raises(
        UserError, match=r"data\.general: found 4 examples of weight 0\.1, of which an epoch visits none"
    ):
        read(DPODataModule(llama, str(tmp_path / "a.jsonl"), general=few))
    long = sft_file(tmp_path / "g.jsonl", range(4), completion="word " * 400)
    with pytest.raises(UserError, match=r"all 4 examples of data\.general are longer"):
        read(DPODataModule(llama, str(tmp_path / "a.jsonl"), general=long))


def test_the_split_of_several_sources_is_that_of_their_records(tmp_path: Path, llama: str) -> None:
    sources = []
    for number in range(2):
        records = [sft_example(n, question=f"key{n // 2}") for n in range(number * 40, number * 40 + 40)]
        write_records(tmp_path / f"{number}.jsonl", records)
        sources.append((FileSource(str(tmp_path / f"{number}.jsonl")), records))
    data = read(SFTDataModule(llama, [source for source, _ in sources], val_fraction=0.3, seed=2))  # type: ignore[arg-type]
    sides = [split_by_group(records, 0.3, 2) for _, records in sources]
    assert [row.id for row in data.rows("train")] == [x.pair_id for train, _ in sides for x in train]
    assert [row.id for row in data.rows("val")] == [x.pair_id for _, val in sides for x in val]
    assert ids(data.val_dataloader()) == [row.id for row in data.rows("val")]


def test_examples_without_an_id_are_named_by_file_and_line(tmp_path: Path, llama: str) -> None:
    write_records(tmp_path / "a.jsonl", [PreferenceExample(({"role": "user", "content": "q"},), "a", "b")] * 2)
    data = read(DPODataModule(llama, str(tmp_path / "a.jsonl")))
    assert [row.id for row in data.rows("train")] == ["a.jsonl:1", "a.jsonl:2"]


def test_a_token_budget_takes_the_place_of_a_number_of_examples(tmp_path: Path, llama: str) -> None:
    same = ({"role": "user", "content": "one question for all"},)
    records = [PreferenceExample(same, f"right {n}", f"wrong {n}", {"pair_id": f"e{n}"}) for n in range(12)]
    write_records(tmp_path / "a.jsonl", [*records, *(preference(n) for n in range(12, 40))])
    whole = read(DPODataModule(llama, str(tmp_path / "a.jsonl"), tokens_per_batch=200, val=str(tmp_path / "a.jsonl")))
    for loader in (whole.train_dataloader(), whole.val_dataloader()):
        batches: list[PreferenceBatch] = list(loader)  # type: ignore[arg-type]
        assert all(len(batch.input_ids) <= 200 for batch in batches)
        assert np.mean([len(batch.input_ids) for batch in batches]) > 150
        assert sorted(name for batch in batches for name in batch.ids) == sorted(f"e{n}" for n in range(40))


# Tokenised once.


def test_stores_are_in_the_users_folder_or_in_the_datasets_cache(
    tmp_path: Path, llama: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sft_file(tmp_path / "a.jsonl", range(4))
    data = read(SFTDataModule(llama, path))
    assert data.cache_folder == own_cache and len(list(own_cache.glob("*.arrow"))) == 1
    data = read(SFTDataModule(llama, path, cache=str(tmp_path / "mine")))
    assert data.cache_folder == tmp_path / "mine" and len(list(tmp_path.glob("mine/*.arrow"))) == 1
    monkeypatch.delenv("HF_DATASETS_CACHE")
    assert SFTDataModule(llama, path).cache_folder == datasets.config.HF_DATASETS_CACHE / "judgelit"
    assert SFTDataModule(llama, path, cache="~/x").cache_folder == Path.home() / "x"


def test_prepared_examples_are_reused_for_any_selection(
    tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [sft_example(n, completion="x" * (9 * n)) for n in range(20)]
    write_records(tmp_path / "a.jsonl", examples)
    (tmp_path / "b.jsonl").write_text("not json")
    SFTDataModule(llama, str(tmp_path / "a.jsonl")).prepare_data()
    # Neither length nor split nor seed is part of what was tokenised; and what is not needed is not read.
    settings: dict[str, Any] = {"max_length": 100, "val_fraction": 0.5, "seed": 4, "test": str(tmp_path / "b.jsonl")}
    data = SFTDataModule(llama, str(tmp_path / "a.jsonl"), **settings)
    assert data.tokenizer.pad_id is not None  # loaded before: its own checks tokenise a question
    with monkeypatch.context() as patched:
        patched.setattr(ChatTokenizer, "prompt_ids", lambda *_: pytest.fail("tokenised again"))
        read(data)
    kept = [row.id for row in (*data.rows("train"), *data.rows("val"))]
    assert 0 < len(kept) < 20 and set(kept) < {f"e{n}" for n in range(20)}
    assert max(data.rows("train").lengths) <= 100
    with pytest.raises(UserError, match=r"b\.jsonl:1: not JSON"):
        read(data, "test")


def test_only_what_a_command_needs_is_prepared(tmp_path: Path, llama: str, own_cache: Path) -> None:
    train, val = sft_file(tmp_path / "a.jsonl", range(4)), sft_file(tmp_path / "b.jsonl", range(5))
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(SFTModule(Backbone(llama)), SFTDataModule(llama, train, val=val), verbose=False)
    assert len(list(own_cache.iterdir())) == 1
    SFTDataModule(llama, train, val=val).prepare_data()
    assert len(list(own_cache.iterdir())) == 2


def test_rows_are_prepared_once_and_before_they_are_loaded(tmp_path: Path, llama: str) -> None:
    path = tmp_path / "a.jsonl"
    write_records(path, [preference(n) for n in range(6)])
    data = read(DPODataModule(llama, str(path), val=str(path), batch_size=3, num_workers=1))
    asked = []

    def prepare(part: str, rows: TokenRows) -> None:
        asked.append(part)
        rows.reference = [[float(n)] * (len(row.chosen) + len(row.rejected)) for n, row in enumerate(rows)]  # type: ignore[union-attr]

    data.prepare_rows = prepare
    for _ in range(2):
        for loader in (data.train_dataloader(), data.val_dataloader()):
            for batch in loader:
                for number, name in enumerate(batch.ids):
                    of_pair = torch.isin(batch.rows, torch.stack([batch.chosen[number], batch.rejected[number]]))
                    assert set(batch.reference[of_pair].tolist()) == {float(name[1:])}
    assert asked == ["train", "val"]
    data.prepare_rows = lambda part, rows: asked.append("again")
    data.val_dataloader()
    assert asked[-1] == "again"


def test_the_rows_of_a_loader_are_pickled_as_little(tmp_path: Path, llama: str) -> None:
    data = read(SFTDataModule(llama, sft_file(tmp_path / "a.jsonl", range(3000)), val_fraction=0.001))
    loader = data.train_dataloader()
    assert len(pickle.dumps(loader.dataset)) < 25_000
    assert pickle.loads(pickle.dumps(loader.dataset))[2000] == data.rows("train")[2000]


# What is refused.


@pytest.mark.parametrize(
    ("settings", "stage", "complaint"),
    [
        ({"max_length": 1025}, "fit", "max_length: found 1025, expected at most the model's context of 1024"),
        ({}, "validate", "nothing to validate on; set data.val or data.val_fraction"),
        ({}, "test", "nothing to test on; set data.test"),
        ({"batch_size": 0}, "fit", "data.batch_size: found 0"),
        ({"tokens_per_batch": 0}, "fit", "data.tokens_per_batch: found 0, expected 1 or more"),
        ({"max_length": 0}, "fit", "data.max_length: found 0, expected 1 or more"),
        ({"num_workers": -1}, "fit", "data.num_workers: found -1, expected 0 or more"),
        ({"val_fraction": 1.0}, "fit", "data.val_fraction: found 1.0"),
        ({"val": "b.jsonl", "val_fraction": 0.1}, "fit", "both set"),
    ],
)
def test_wrong_settings_are_one_line(
    tmp_path: Path, llama: str, settings: dict[str, Any], stage: str, complaint: str
) -> None:
    with pytest.raises(UserError) as error:
        read(SFTDataModule(llama, sft_file(tmp_path / "a.jsonl", range(4)), **settings), stage)
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_new_tokens": 0}, "judge.max_new_tokens: found 0, expected 1 or more"),
        ({"batch_size": 0}, "judge.batch_size: found 0"),
        ({"limit": 0}, "judge.limit: found 0"),
        ({"sets": {}}, "judge.sets: found no set"),
        ({"sets": {"../up": "x"}}, "judge.sets: found the name '../up'"),
    ],
)
def test_wrong_judge_settings_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        JudgeData(**{"sets": {"held": "x.jsonl"}, **settings})
    assert complaint in str(error.value)


# Pairs to judge.


def judge_data(tmp_path: Path, **more: Any) -> JudgeData:
    write_records(tmp_path / "pairs.jsonl", [make_pair(number, "AB"[number % 2]) for number in range(6)])
    settings = {"templates": short_templates(tmp_path / "templates"), "max_new_tokens": 10, "batch_size": 4, **more}
    return JudgeData({"held": str(tmp_path / "pairs.jsonl")}, **settings)


def test_judge_prompts_come_in_both_orders_padded_on_the_left(tmp_path: Path, llama: str) -> None:
    data = JudgeDataModule(llama, judge_data(tmp_path, limit=5))
    (loader,) = data.predict_dataloader()
    batches = list(loader)
    prompts = [prompt for batch in batches for prompt in batch.prompts]
    assert [(p.pair.id, p.order) for p in prompts] == [(f"p{n}", order) for n in range(5) for order in ("ab", "ba")]
    for batch in batches:
        for prompt, row, mask in zip(batch.prompts, batch.input_ids, batch.attention_mask, strict=True):
            wanted = data.tokenizer.prompt_ids(prompt.messages)
            assert row[len(row) - len(wanted) :].tolist() == wanted
            assert mask.tolist() == [0] * (len(row) - len(wanted)) + [1] * len(wanted)


def test_prompts_must_leave_room_for_a_judgment(tmp_path: Path, llama: str) -> None:
    with pytest.raises(UserError, match=r"judge\.max_new_tokens: found 1024, expected less than the 1024 tokens"):
        JudgeDataModule(llama, judge_data(tmp_path, max_new_tokens=1024)).judge_sets()
    with pytest.raises(UserError, match="held: no pair fits the 14 tokens"):
        JudgeDataModule(llama, judge_data(tmp_path, max_new_tokens=1010)).judge_sets()
    with pytest.raises(UserError, match=r"data\.judge is not set"):
        JudgeDataModule(llama).predict_dataloader()
    assert JudgeDataModule(llama).judge_sets() == {}


def test_an_id_stands_for_one_pair(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "pairs.jsonl")
    pairs = [make_pair(1), make_pair(2), make_pair(1).swapped(), make_pair(2)]
    write_records(path, pairs)
    assert read_pairs(path) == pairs[:2]
    assert f"{path}: 2 pairs repeat an earlier one, as it was or swapped" in caplog.text
    assert read_pairs([path, FileSource(path)]) == pairs[:2]
    write_records(path, [*pairs, make_pair(1, right="another")])
    with pytest.raises(UserError, match="pair id 'p1': found two different pairs"):
        read_pairs(path)


# Continuing a run.


class KilledError(Exception):
    """Stands for a kill: nothing may happen in the run after it."""


class Seen(Callback):
    """Notes the ids of every batch, and ends the run after some."""

    def __init__(self, killed_after: int | None = None) -> None:
        self.batches: list[tuple[str, ...]] = []
        self.killed_after = killed_after

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if len(self.batches) == self.killed_after:
            raise KilledError
        self.batches.append(batch.ids)


BUDGETS = {"sft": 75, "dpo": 110}
"""Tokens of a batch with which the epochs need different numbers of batches: 8, 7, 8 and 5, 6, 6."""


def ragged(kind: str, number: int) -> SFTExample | PreferenceExample:
    """Of uneven length; the first six are two to a prompt."""
    prompt = ({"role": "user", "content": f"question {number // 2 if number < 6 else number}"},)
    text = "word " * (number * 5 % 9) + str(number)
    if kind == "sft":
        return SFTExample(prompt, text, f"e{number}")
    return PreferenceExample(prompt, text, f"wrong {number}", {"pair_id": f"e{number}"})


class Runs:
    """A training run, whole or in two parts."""

    def __init__(
        self,
        folder: Path,
        model: str,
        kind: str = "sft",
        accumulate: int = 1,
        workers: int = 0,
        by_tokens: bool = False,
    ) -> None:
        self.folder, self.model, self.kind = folder, model, kind
        self.accumulate, self.workers = accumulate, workers
        self.settings: dict[str, Any] = {"batch_size": 3}
        records: list[Any] = [sft_example(n) if kind == "sft" else preference(n) for n in range(14)]
        if by_tokens:
            self.settings = {"tokens_per_batch": BUDGETS[kind], "group_by_length": False}
            records = [ragged(kind, n) for n in range(14)]
        self.file = str(folder / "train.jsonl")
        write_records(self.file, records)

    def fit(
        self, callbacks: list[Callback], resume: Path | None = None, schedule: bool = True, **trainer: Any
    ) -> tuple[list[tuple[str, ...]], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        data = (SFTDataModule if self.kind == "sft" else DPODataModule)(
            self.model, self.file, num_workers=self.workers, **self.settings
        )
        kind: Any = SFTModule if self.kind == "sft" else DPOModule
        module: FineTuningModule = kind(
            Backbone(self.model),
            optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-3),
            lr_scheduler=(lambda optimizer: WarmupCosine(optimizer, warmup=0.2)) if schedule else None,
        )
        seen = next(callback for callback in callbacks if isinstance(callback, Seen))
        fitting = L.Trainer(
            default_root_dir=self.folder,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            accumulate_grad_batches=self.accumulate,
            callbacks=callbacks,
            **trainer,
        )
        try:
            fitting.fit(module, data, ckpt_path=resume, weights_only=False if resume else None)
        except KilledError:
            assert seen.killed_after is not None
        return seen.batches, {name: weight.detach().clone() for name, weight in module.named_parameters()}

    def checkpoint(self, **more: Any) -> ModelCheckpoint:
        return ModelCheckpoint(self.folder / "checkpoints", save_last=True, save_top_k=0, **more)

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def trained_at_last(self) -> int:
        """Micro-batches that the last checkpoint knows of."""
        loops = torch.load(self.last, weights_only=False)["loops"]["fit_loop"]
        return loops["epoch_loop.batch_progress"]["total"]["processed"]


def assert_same(
    whole: tuple[list[tuple[str, ...]], dict[str, torch.Tensor]], first: list[tuple[str, ...]], second: Any
) -> None:
    assert first + second[0] == whole[0]
    assert whole[1].keys() == second[1].keys()
    assert all(torch.equal(weight, second[1][name]) for name, weight in whole[1].items())


@pytest.fixture(autouse=True)
def no_false_alarm() -> Iterator[None]:
    """Users who continue a run are not told that their data cannot be continued."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert not [warning for warning in caught if "not resumable" in str(warning.message)]


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 0), (2, 2)])
def test_every_example_is_trained_on_once_an_epoch(tmp_path: Path, llama: str, accumulate: int, workers: int) -> None:
    runs = Runs(tmp_path, llama, accumulate=accumulate, workers=workers, by_tokens=True)
    batches, _ = runs.fit([Seen()], max_epochs=3)
    assert len(batches) == 3 * 8
    for start in range(0, len(batches), 8):
        seen = [name for batch in batches[start : start + 8] for name in batch]
        assert sorted(seen) == sorted(f"e{number}" for number in range(14))


# 14 examples in batches of 3 are 5 batches an epoch, the last of which ends a window of accumulation by itself.
@pytest.mark.parametrize(
    ("kind", "by_tokens", "accumulate", "workers", "killed_after"),
    [
        *itertools.product(["sft"], [False], [1, 2], [0], [1, 4, 5, 6, 7, 11]),
        *itertools.product(["sft"], [False], [1, 2], [2], [3, 5]),
        *itertools.product(["dpo"], [False], [1, 2], [0], [5, 7]),
        *itertools.product(["sft"], [True], [1, 2], [0], [7, 8, 9]),
        *itertools.product(["dpo"], [True], [2], [0, 2], [5, 8]),
    ],
)
def test_a_killed_run_continues_with_the_batches_and_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, llama: str, kind: str, by_tokens: bool, accumulate: int, workers: int, killed_after: int
) -> None:
    runs = Runs(tmp_path, llama, kind, accumulate, workers, by_tokens)
    whole = runs.fit([Seen()], max_epochs=3)
    assert len(whole[0]) == 3 * (8 if by_tokens and kind == "sft" else 5)
    begun, _ = runs.fit([runs.checkpoint(every_n_train_steps=1), Seen(killed_after)], max_epochs=3)
    assert begun == whole[0][:killed_after]
    if not runs.last.exists():
        assert killed_after < accumulate, "before the first step there is nothing to continue"
        return
    done = runs.trained_at_last()
    assert killed_after - accumulate < done <= killed_after
    assert_same(whole, begun[:done], runs.fit([Seen()], runs.last, max_epochs=3))


@pytest.mark.parametrize(
    ("epochs", "workers", "by_tokens"), [*itertools.product([1, 2], [0, 2], [False]), (1, 0, True), (2, 2, True)]
)
def test_a_run_continues_from_the_end_of_an_epoch(
    tmp_path: Path, llama: str, epochs: int, workers: int, by_tokens: bool
) -> None:
    runs = Runs(tmp_path, llama, workers=workers, by_tokens=by_tokens)
    whole = runs.fit([Seen()], schedule=False, max_epochs=3)
    begun, _ = runs.fit([runs.checkpoint(), Seen()], schedule=False, max_epochs=epochs)
    assert_same(whole, begun, runs.fit([Seen()], runs.last, schedule=False, max_epochs=3))


@pytest.mark.parametrize(
    ("steps", "accumulate", "workers", "by_tokens"),
    [
        *itertools.product([1, 3, 4, 5, 6], [1], [0], [False]),
        *itertools.product([2, 3, 5], [2], [0], [False]),
        *itertools.product([3, 5], [1], [2], [False]),
        *itertools.product([3, 4, 5], [2], [0], [True]),
    ],
)
def test_a_run_that_max_steps_stopped_goes_on_where_it_was(
    tmp_path: Path, llama: str, steps: int, accumulate: int, workers: int, by_tokens: bool
) -> None:
    runs = Runs(tmp_path, llama, accumulate=accumulate, workers=workers, by_tokens=by_tokens)
    whole = runs.fit([Seen()], schedule=False, max_steps=8)
    begun, _ = runs.fit([runs.checkpoint(), Seen()], schedule=False, max_steps=steps)
    assert_same(whole, begun, runs.fit([Seen()], runs.last, schedule=False, max_steps=8))


def test_a_run_may_be_continued_twice(tmp_path: Path, llama: str) -> None:
    runs = Runs(tmp_path, llama)
    whole = runs.fit([Seen()], max_epochs=3)
    begun, _ = runs.fit([runs.checkpoint(every_n_train_steps=1), Seen(4)], max_epochs=3)
    more, _ = runs.fit([runs.checkpoint(every_n_train_steps=1), Seen(5)], runs.last, max_epochs=3)
    assert_same(whole, begun[:4] + more[:5], runs.fit([Seen()], runs.last, max_epochs=3))


def test_a_trainer_that_shares_out_batches_itself_is_told_not_to(tmp_path: Path, llama: str) -> None:
    data = SFTDataModule(llama, sft_file(tmp_path / "a.jsonl", range(16)), batch_size=2)
    data.trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False
    )
    data.setup("fit")
    loader = data.train_dataloader()
    connector = data.trainer._data_connector
    assert connector._prepare_dataloader(loader, shuffle=True, mode=RunningStage.TRAINING) is loader


def test_ranks_share_the_batches_of_an_epoch(tmp_path: Path, llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, parts = sft_file(tmp_path / "a.jsonl", range(16)), []
    for rank in range(2):
        monkeypatch.setattr("judgelit.batches.datamodules.rank_and_world_size", lambda trainer, rank=rank: (rank, 2))
        loader = read(SFTDataModule(llama, path, batch_size=2)).train_dataloader()
        assert isinstance(loader, DataLoader)
        parts.append(ids(loader))
    assert sorted(parts[0] + parts[1]) == sorted(f"e{number}" for number in range(16))
    assert len(parts[0]) == len(parts[1]) == 8
