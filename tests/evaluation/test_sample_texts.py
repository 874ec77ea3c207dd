from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from judgelit.evaluation.sample_texts import as_code, log_texts
from judgelit.records.records import Judgment

HOSTILE = "<script>x()</script>\r# head\r\n![i](http://h/i.png)\n\n```\n<img src=http://h/j>\n```\n[l]: http://h\n\t[l]\x0b**b**"


@pytest.mark.parametrize(
    "text", [HOSTILE, HOSTILE.replace("\r", "\n\n"), "\n\n" + HOSTILE, HOSTILE.replace("\n", "\r")]
)
def test_judged_text_stays_text_in_tensorboard(text: str) -> None:
    html = markdown_to_safe_html(as_code(text))
    tags = {part.split(">")[0].strip("/") for part in html.split("<")[1:]}
    assert tags == {"pre", "code"} and html.count("<pre>") == 1
    assert "&lt;script&gt;x()&lt;/script&gt;" in html and "![i](http://h/i.png)" in html


class Wandb(WandbLogger):
    """Lightning's logger for W&B without the package `wandb`: it keeps the tables that it is given."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}

    def log_table(self, key: str, *table: Any, **more: Any) -> None:
        self.tables[key] = (*table, *more.values())


def test_judgments_are_logged_as_texts_and_as_a_table(tmp_path: Path) -> None:
    prompt = ({"role": "system", "content": "You judge."}, {"role": "user", "content": f"Q {HOSTILE}"})
    texts = ["[[A]]", HOSTILE]
    judgments = [Judgment(f"p{n}", prompt, text, "AB"[n], "ab", "t", "e", 0) for n, text in enumerate(texts)]
    judgments.append(Judgment("p2", prompt, "no idea", None, "ba", "t", "e", 0))
    board, wandb = TensorBoardLogger(tmp_path, name="", version=""), Wandb()
    trainer: Any = SimpleNamespace(loggers=[board, wandb], global_step=7)
    log_texts(trainer, "held", judgments)
    board.experiment.flush()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("judge/held/1/text_summary")
    assert event.step == 7 and "    <script>x()</script>\n    # head" in event.tensor_proto.string_val[0].decode()
    columns, rows, dataframe, step = wandb.tables["judge/held/judgments"]
    assert columns == ["item", "order", "verdict", "prompt", "judgment"] and dataframe is None and step == 7
    assert rows == [
        ["p0", "ab", "A", f"Q {HOSTILE}", "[[A]]"],
        ["p1", "ab", "B", f"Q {HOSTILE}", HOSTILE],
        ["p2", "ba", "none", f"Q {HOSTILE}", "no idea"],
    ]
