"""The scorers of the `rewardbench` package, if it is installed, for comparison."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def official(name: str) -> Any:
    """A module of the `rewardbench` package, loaded without the package's own imports, most of which are heavy.

    Skips the test if the package is not installed.
    """
    package = importlib.util.find_spec("rewardbench")
    if package is None or package.origin is None:
        pytest.skip("the package rewardbench is not installed: pip install --no-deps rewardbench")
    replaced = {"rewardbench": {}, "rewardbench.models": {"REWARD_MODEL_CONFIG": {}}}
    replaced |= {"fastchat": {}, "fastchat.conversation": {"Conversation": None}}
    before = {module: sys.modules.get(module) for module in replaced}
    for module, content in replaced.items():
        sys.modules[module] = ModuleType(module)
        vars(sys.modules[module]).update(content)
    try:
        spec = importlib.util.spec_from_file_location(f"official_{name}", Path(package.origin).parent / f"{name}.py")
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    finally:
        for module, old in before.items():
            if old is None:
                del sys.modules[module]
            else:
                sys.modules[module] = old
    return loaded
