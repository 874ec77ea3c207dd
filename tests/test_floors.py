"""The architecture: a module imports only from floors below its own."""

import ast
from pathlib import Path

import judgelit

PACKAGE = Path(judgelit.__file__).parent
FLOORS = [
    {"errors", "console", "progress", "atomic", "yaml_files", "parsing", "commands", "shipped_configs", "__init__"},
    {"records"},
    {"judging"},
    {"batches"},
    {"models"},
    {"likelihood", "runs"},
    {"generation"},
    {"evaluation"},
    {"training"},
    {"synthesis", "planning"},
    {"report"},
    {"pipeline"},
    {"cli"},
]


def floor(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


def imported_rooms(path: Path) -> set[str]:
    """First parts of what a file imports from judgelit, wherever in the file the import stands."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "judgelit" else [f"judgelit.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "judgelit" and len(parts) > 1 and not parts[1].startswith("__"):
                rooms.add(parts[1] if parts[1] != "UserError" else "errors")
    return rooms


def test_imports_go_down() -> None:
    upward = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        upward += [
            f"{path.relative_to(PACKAGE)} imports {other}"
            for other in imported_rooms(path)
            if floor(other) > floor(room) or (floor(other) == floor(room) and other != room and floor(room) > 0)
        ]
    assert upward == []


def test_every_module_has_a_floor() -> None:
    for path in PACKAGE.iterdir():
        if path.suffix == ".py" or (path.is_dir() and list(path.glob("*.py"))):
            floor(path.name.removesuffix(".py"))
