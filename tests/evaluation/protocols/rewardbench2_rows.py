"""Native rows of RewardBench 2."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NATIVE_SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus")


def native(subset: str, identity: str, right: int = 1, wrong: int = 3, **more: Any) -> dict[str, Any]:
    """A row of RewardBench 2."""
    answers = {"chosen": [f"yes {n}" for n in range(right)], "rejected": [f"no {n}" for n in range(wrong)]}
    counts = {"num_correct": right, "num_incorrect": wrong, "total_completions": right + wrong}
    return {"id": identity, "prompt": f"{identity}?", **answers, **counts, "models": ["m"], "subset": subset, **more}


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """The path of a file with these rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
