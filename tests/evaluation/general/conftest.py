import json
from pathlib import Path
from typing import Any

import pytest

from judgelit.generation.engine import EngineSpec, load_engine

ROWS = [
    {"prompt": "What is 6 + 6?", "completion": "It is 12."},
    {"prompt": "What is 6 + 6?", "completion": "twelve"},
    {"prompt": "Which answer is better?", "completion": "The first answer is right, since 6 + 6 = 12."},
    {"messages": [{"role": "user", "content": "def add"}, {"role": "assistant", "content": "return a + b"}]},
    {"instruction": "Say it.", "input": "", "output": "answer " * 30},
]


@pytest.fixture
def examples(tmp_path: Path) -> str:
    """A file of five general examples in several public forms, two of which share a prompt."""
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def engine(llama: str) -> Any:
    """A tiny model, loaded."""
    return load_engine(EngineSpec(llama, batch_size=4))
