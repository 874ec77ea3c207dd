"""Syntheses that are killed with SIGKILL at random moments; `benchmarks/synthesis_kills.py` does so on a real model."""

import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.records.files import write_records
from judgelit.synthesis.enhancement import Enhancement, synthesize_enhancement
from tests.support import ScriptedEngine, make_pair, short_templates

PAIRS = [make_pair(number, "AB"[number % 2]) for number in range(20)]
FORK = multiprocessing.get_context("fork")


def say(prompt: str, sample: int) -> str:
    label = "AB"[random.Random(f"{prompt}{sample}").random() < (0.1 if "question 1" in prompt else 0.5)]
    return f"thought {sample} [[{label}]]"


def make(folder: Path, tokenizer: ChatTokenizer, asked: Path) -> None:
    """Synthesize with a slow engine that notes each prompt in a file before it answers."""

    class Slow(ScriptedEngine):
        def answer(self, conversations: Any, *args: Any, done: Any = (), **more: Any) -> Any:
            for index in range(len(conversations)):
                if index not in done:
                    with asked.open("a") as file:
                        file.write(f"{hash(conversations[index][-1]['content'])}\n")
                    time.sleep(0.004)
                    others = set(range(len(conversations))) - {index}
                    yield from super().answer(conversations, *args, done=others, **more)

    examples, _ = synthesize_enhancement(
        PAIRS,
        Slow(say, tokenizer=tokenizer),
        short_templates(folder / "templates"),
        folder / "journal.sqlite",
        max_prompt_tokens=400,
        settings=Enhancement(samples=4, max_new_tokens=20, hint="right"),
    )
    write_records(folder / "set.jsonl", examples)


def test_killed_syntheses_give_the_unbroken_set_and_ask_nothing_twice(tmp_path: Path, chatml: ChatTokenizer) -> None:
    make(tmp_path / "unbroken", chatml, tmp_path / "asked")
    whole = Counter((tmp_path / "asked").read_text().split())
    rng, kills = random.Random(0), 0
    for run in range(2):
        folder, asked = tmp_path / f"killed {run}", tmp_path / f"asked {run}"
        for part in (0.2, 0.6):
            process = FORK.Process(target=make, args=(folder, chatml, asked))
            process.start()
            while process.is_alive():
                known = len(asked.read_text().split()) if asked.exists() else 0
                if known > (part + rng.uniform(-0.15, 0.15)) * sum(whole.values()):
                    break
            kills += process.is_alive()
            process.kill()
            process.join()
        make(folder, chatml, asked)
        assert (folder / "set.jsonl").read_bytes() == (tmp_path / "unbroken" / "set.jsonl").read_bytes()
        repeated = Counter(asked.read_text().split()) - whole
        # A kill may come when a prompt was asked and its answer not yet written.
        assert sum(repeated.values()) <= 2
    assert kills == 4
