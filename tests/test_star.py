"""The import star: bits, data, models and robust never import one another, and heavy backends stay in one file."""

import ast
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[1]
POINTS = ("bits", "data", "models", "robust")
PACKAGES = (*POINTS, "engine")
# Who may import a package that decides where things run (patterns). XLA has several files of one backend, each a noun
# of its own (the environment, its watch, its export): in one they would be a thousand lines.
HOMES = {
    "torch_xla": ("bits/xla.py", "bits/xla_*.py", "launch_xla.py"),
    "accelerate": ("bits/accelerated.py", "launch_gpu.py"),
    "torch_tpu": ("bits/tpu.py",),
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, top-level name) of every import in a file, those inside functions and import_module("...") too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the package"
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            literals = [
                n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
            found += [(node.lineno, literal) for literal in literals]
    return [(line, name.split(".")[0]) for line, name in found]


def violations(root: Path) -> list[str]:
    lines = []
    for path in sorted([*root.glob("*.py"), *(p for name in PACKAGES for p in (root / name).rglob("*.py"))]):
        relative = path.relative_to(root).as_posix()
        home = relative.split("/")[0]
        for line, name in imports(path):
            if home in POINTS and name in PACKAGES and name != home:
                lines.append(f"{relative}:{line}: {home} imports {name}; pass it in from engine")
            if home not in PACKAGES and name in POINTS:
                lines.append(f"{relative}:{line}: only engine knows {name}")
            if name in HOMES and not any(fnmatchcase(relative, p) for p in HOMES[name]):
                lines.append(f"{relative}:{line}: {name} belongs to {', '.join(HOMES[name])}")
    return lines


def test_imports_form_a_star() -> None:
    assert violations(ROOT) == []


def test_the_guard_sees_an_import_inside_a_function(tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
    (tmp_path / "robust" / "bad.py").write_text(
        "def f():\n    from bits.noise import noise\n    return noise\n"
    )
    (tmp_path / "data" / "bad.py").write_text(
        "import importlib\nm = importlib.import_module('models.norm')\n"
    )
    (tmp_path / "engine" / "bad.py").write_text("import torch_xla.core\n")
    (tmp_path / "engine" / "xla_bad.py").write_text("import torch_xla\n")
    (tmp_path / "bits" / "xla_watch.py").write_text("import torch_xla\n")
    found = violations(tmp_path)
    assert [line.split(" ")[0] for line in found] == [
        "data/bad.py:2:",
        "engine/bad.py:1:",
        "engine/xla_bad.py:1:",
        "robust/bad.py:2:",
    ]
