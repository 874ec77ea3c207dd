from pathlib import Path

from judgelit.judging.kept_templates import KEPT, KeptTemplates, keep_templates
from judgelit.judging.template import load_templates
from tests.support import short_templates


def test_kept_templates_are_read_as_they_were(tmp_path: Path) -> None:
    templates = {**load_templates(["*"]), **short_templates(tmp_path / "mine").load()}
    keep_templates(templates, tmp_path)
    assert KeptTemplates(str(tmp_path)).load() == templates
    assert {path.stem for path in (tmp_path / KEPT).iterdir()} == set(templates)
