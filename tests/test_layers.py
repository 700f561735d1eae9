"""Who may import what, and that asking for help stays fast because it imports nothing heavy."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import satdiff_cli
from satdiff_cli.cli import app
from satdiff_cli.plugins import PluginKind, list_plugins

PACKAGE = Path(satdiff_cli.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
PLUGIN_KINDS: tuple[PluginKind, ...] = ("detectors", "formats", "models", "outputs")
VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands if command.callback)

# For each library the modules, or folders ending in "/", that may import it.
ALLOWED = {
    "torch": (
        "models/",
        "samples.py",
        "losses.py",
        "checkpoint.py",
        "pretrained.py",
        "training/",
        "inference/",
        "detectors/dcva.py",
    ),
    "segmentation_models_pytorch": (
        "models/",
        "samples.py",
        "losses.py",
        "checkpoint.py",
        "pretrained.py",
        "training/",
        "inference/",
    ),
    "albumentations": ("augmentation.py",),
    "lightning": ("training/",),
    "rasterio": ("raster/",),
    "geopandas": ("vectors.py",),
    "pyogrio": ("vectors.py",),
    "shapely": ("vectors.py",),
    "pyproj": ("geodesy.py",),
    "ray": ("cluster.py",),
    "optuna": ("sweeping/",),
    "typer": ("cli.py", "commands/"),
    "rich": ("cli.py", "commands/"),
}
HEAVY = (
    "torch",
    "lightning",
    "segmentation_models_pytorch",
    "timm",
    "albumentations",
    "rasterio",
    "geopandas",
    "pyogrio",
    "shapely",
    "pyproj",
    "pyarrow",
    "pandas",
    "numpy",
    "scipy",
    "cv2",
    "skimage",
)
# The layers of DESIGN.md, lowest first; a module or package imports from its own layer and those below.
LAYERS = (
    ("errors",),
    ("config", "plugins", "presets", "cluster", "locking"),
    (
        "catalog",
        "windows",
        "seams",
        "coregistration",
        "radiometry",
        "probability",
        "regions",
        "metrics",
        "confusion",
        "transitions",
    ),
    (
        "raster",
        "artifacts",
        "rowstore",
        "plain_pickle",
        "predictions",
        "tables",
        "compositing",
        "ensembling",
        "geodesy",
        "changes",
        "vectors",
        "pictures",
        "fetching",
        "landcover",
    ),
    ("pairing", "tiling", "augmentation", "losses", "samples", "checkpoint", "pretrained", "experiment"),
    ("training", "inference", "evaluation", "submission", "detection", "sweeping"),
    ("from_to", "mapping"),
)


def walk_imports(source: Path) -> Iterator[tuple[str, bool]]:
    """Yield the full name of each import of a file, and whether it runs when the module is imported."""
    tree = ast.parse(source.read_text(encoding="utf-8"))

    def visit(node: ast.AST, *, at_import: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{source}: relative import"
                yield from ((f"{child.module}.{alias.name}", at_import) for alias in child.names)
            else:
                yield from visit(child, at_import=at_import and not is_typing and not is_function)

    yield from visit(tree, at_import=True)


def own_module(name: str) -> str | None:
    """Return which file of the package an import names, as ``models/siamese``; None for another package."""
    parts = name.split(".")
    if parts[0] != "satdiff_cli":
        return None
    while len(parts) > 1:
        path = "/".join(parts[1:])
        if f"{path}.py" in SOURCES or f"{path}/__init__.py" in SOURCES:
            return path
        parts.pop()
    return "__init__"


def list_files(name: str) -> list[Path]:
    """List the files of a module or package."""
    return [path for source, path in SOURCES.items() if source == f"{name}.py" or source.startswith(f"{name}/")]


def list_heavy(code: str) -> list[str]:
    """Run code in a process of its own and list the heavy libraries that it left imported."""
    report = f"\nimport json, sys\nprint('\\n' + json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    heavy: list[str] = json.loads(done.stdout.splitlines()[-1])
    return heavy


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    importers = {
        name for name, path in SOURCES.items() for target, _ in walk_imports(path) if target.split(".")[0] == library
    }
    misplaced = {name for name in importers if not name.startswith(ALLOWED[library])}
    assert importers, f"{library} is not imported at all: mend this test"
    assert not misplaced


def test_commands_import_heavy_libraries_inside_their_functions_only() -> None:
    for name, path in SOURCES.items():
        if name == "cli.py" or name.startswith("commands/"):
            early = {target for target, at_import in walk_imports(path) if at_import}
            assert not {target for target in early if target.split(".")[0] in HEAVY}, name


def test_only_the_command_line_imports_commands() -> None:
    for name, path in SOURCES.items():
        if name != "cli.py" and not name.startswith("commands/"):
            assert not [
                target for target, _ in walk_imports(path) if "satdiff_cli.c" in target and "commands" in target
            ]
            assert "satdiff_cli.cli" not in {target for target, _ in walk_imports(path)}


@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_plug_ins_import_neither_commands_nor_each_other(kind: PluginKind) -> None:
    assert list_plugins(kind)
    for name in list_plugins(kind):
        for target, _ in walk_imports(PACKAGE / kind / f"{name}.py"):
            module = own_module(target)
            if module is None:
                continue
            assert not module.startswith("commands"), f"{kind}/{name} imports {target}"
            is_plugin = module.split("/")[0] in PLUGIN_KINDS
            assert not is_plugin or module.startswith(f"{kind}/_"), f"{kind}/{name} imports {target}"


def test_the_core_reaches_plug_ins_through_the_loader_alone() -> None:
    for name, path in SOURCES.items():
        if name.split("/")[0] in PLUGIN_KINDS:
            continue
        targets = {own_module(target) for target, _ in walk_imports(path)}
        assert not {target for target in targets if target and target.split("/")[0] in PLUGIN_KINDS}, name


def test_imports_of_the_core_go_downward() -> None:
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for name, own_rank in rank.items():
        for path in list_files(name):
            for target, _ in walk_imports(path):
                module = (own_module(target) or "").split("/")[0]
                if module in rank:
                    assert rank[module] <= own_rank, f"{path.name} of {name} imports {target}"


def test_every_module_of_the_core_has_its_layer() -> None:
    placed = {name for layer in LAYERS for name in layer} | {"__init__", "cli"}
    packages = {"commands", "synthetic", *PLUGIN_KINDS}
    assert {name.split("/")[0].removesuffix(".py") for name in SOURCES} - packages == placed


def test_the_core_does_not_print() -> None:
    for name, path in SOURCES.items():
        if name == "cli.py" or name.startswith("commands/"):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        named = {ast.unparse(call.func) for call in calls}
        assert not named & {"print", "sys.stdout.write", "sys.stderr.write", "sys.exit"}, name


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    assert list_heavy("import satdiff_cli.cli") == []


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy(verb: str) -> None:
    args = [*([verb] if verb else []), "--help"]
    assert list_heavy(f"from satdiff_cli.cli import app\napp({args!r}, standalone_mode=False)") == []


def test_listing_plug_ins_does_not_import_them() -> None:
    code = f"from satdiff_cli.plugins import list_plugins\nfor kind in {PLUGIN_KINDS!r}: list_plugins(kind)"
    assert list_heavy(code) == []
