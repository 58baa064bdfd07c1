"""The house's rules: sizes, names, docstrings, and who may touch what is private.

Every exception stands here with its reason. An exception that is none any more fails too, so that the lists only get
shorter.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "ctmr"
FILE_LINES = 400
FUNCTION_CODE_LINES = 60
FOLDER_MODULES = 14
QUESTIONS = ("What", "How", "Who", "Which", "Where", "Whether", "Whom", "Whose", "When", "Why", "Whatever")

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
LARGE_FOLDERS: dict[str, str] = {
    "metrics": "one family of metrics a file, and what they share",
    "phantom": "one organ a file",
}
SAME_MODULE_NAMES: dict[str, str] = {
    "__init__": "Python's",
    "__main__": "Python's: `python -m ctmr.cli`, `python -m ctmr.kubeflow.local_api`",
    "app": "the command line, and the run API's",
    "base": "what sections of a recipe, and what image steps, have in common",
    "canvas": "arrays that a phantom is drawn into, and SVG",
    "compare": "the command, and its page",
    "evaluation": "the recipe's section, and the page of its stage",
    "events": "of a pipeline's run, and of a training",
    "figures": "of the reports, and of a study",
    "files": "files of a data set that are de-identified, and files as such",
    "geometry": "of DICOM, and of the phantom",
    "images": "commands that make images, and reading an inventory's row",
    "model": "Triton demands it of every Python backend",
    "names": "of data sets, and of stages",
    "naming": "of data sets' files, and of trials",
    "parameters": "of a pipeline, and of the run API",
    "pool": "of processes, and of images",
    "registry": "of metrics, and of kinds that a recipe names",
    "repository": "DVC's, and the demo's own",
    "samples": "rows of pictures of a training, and their page",
    "server": "of the run API, and Triton",
    "study": "Optuna's, and its page",
    "tasks": "of Kubeflow's pipelines, and of a run in the run API",
    "tissue": "measured, and drawn",
}
SAME_CLASS_NAMES: dict[str, str] = {
    "TritonPythonModel": "Triton demands it of every Python backend",
}
PRIVATE_IN_TESTS: dict[str, int] = {
    "data/test_sampling.py": 1,
    "doors/test_compiled_run.py": 1,
    "evaluation/conftest.py": 1,
    "evaluation/test_direction.py": 2,
    "evaluation/test_evaluate_stage.py": 1,
    "imaging/steps/test_registration.py": 1,
    "io/test_dicom_pixels.py": 4,
    "kubeflow/local_api/test_queue.py": 1,
    "networks/test_fast_layers.py": 1,
    "pipeline/test_kfp_local.py": 1,
    "reference/test_ssim_against_scikit_image.py": 3,
    "serving/test_export.py": 2,
    "training/hardware/test_distributed.py": 1,
    "tuning/test_study.py": 1,
    "tuning/test_tune.py": 2,
}
"""Test file → how often it reaches for a private name of the package."""
FOREIGN = {
    "network._blocks",
    "optuna.storages._rdb",
    "os._exit",
    "pruner._trial_allocation_budgets",
    "pruner._try_initialization",
}
"""Private names that are not the package's."""


@cache
def modules() -> dict[str, str]:
    """Return path below the package → source."""
    return {p.relative_to(PACKAGE).as_posix(): p.read_text() for p in sorted(PACKAGE.rglob("*.py"))}


@cache
def trees() -> dict[str, ast.Module]:
    """Return path below the package → syntax tree."""
    return {name: ast.parse(text) for name, text in modules().items()}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.AST) -> Iterator[tuple[ast.Module | ast.ClassDef | Function, ast.Expr]]:
    """Yield whatever has a docstring, and that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            assert isinstance(docstring, ast.Expr)
            yield node, docstring


def lines_of(node: ast.AST) -> range:
    return range(node.lineno, node.end_lineno + 1)  # type: ignore[attr-defined]


def code_lines(function: Function, source: list[str]) -> int:
    """Count a function's lines without docstrings, blank lines and comments."""
    prose = {line for _, docstring in documented(function) for line in lines_of(docstring)}
    code = (source[line - 1].strip() for line in lines_of(function) if line not in prose)
    return sum(bool(line) and not line.startswith("#") for line in code)


def test_no_file_is_longer_than_400_lines() -> None:
    long = {name for name, text in modules().items() if len(text.splitlines()) > FILE_LINES}
    assert long == set(LONG_FILES)


def test_no_function_has_more_than_60_lines_of_code() -> None:
    found = {
        f"{name}:{node.name}": code_lines(node, text.splitlines())
        for name, text in modules().items()
        for node in ast.walk(trees()[name])
        if isinstance(node, Function)
    }
    long = {name: lines for name, lines in found.items() if lines > FUNCTION_CODE_LINES}
    assert set(long) == set(LONG_FUNCTIONS), long


def test_a_folder_has_at_most_14_modules() -> None:
    sizes = Counter(name.rpartition("/")[0] for name in modules() if not name.endswith("__init__.py"))
    assert {folder for folder, size in sizes.items() if size > FOLDER_MODULES} == set(LARGE_FOLDERS)


def test_a_module_name_occurs_twice_only_with_a_reason() -> None:
    names = Counter(Path(name).stem for name in modules())
    twice = {name for name, count in names.items() if count > 1}
    assert twice == set(SAME_MODULE_NAMES)


def test_no_two_public_classes_share_a_name() -> None:
    where = defaultdict(list)
    for name, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(name)
    twice = {name: places for name, places in where.items() if len(places) > 1}
    assert set(twice) == set(SAME_CLASS_NAMES), twice


def test_a_docstring_begins_with_a_noun_or_a_verb() -> None:
    questions = [
        f"{name}:{docstring.lineno}: {words}"
        for name, tree in trees().items()
        for node, docstring in documented(tree)
        if (words := str(ast.get_docstring(node)).partition("\n")[0]).partition(" ")[0].rstrip(",.:;") in QUESTIONS
    ]
    assert not questions, "\n".join(questions)


def test_no_module_imports_a_private_name_of_another() -> None:
    assert [f"{name}: {found}" for name, tree in trees().items() for found in private_imports(tree)] == []


def private_imports(tree: ast.Module) -> list[str]:
    """Return the private names of the package that are imported, `from ctmr.x import _y` or `from ctmr._x import y`."""
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ctmr"
        for alias in node.names
        if any(private(part) for part in (*str(node.module).split("."), alias.name))
    ]


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(tree: ast.Module) -> list[str]:
    """Return the private names of others that a test file reads, replaces or imports."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | Function)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    }
    found = private_imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            texts = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found += [text for text in texts if any(private(part) for part in text.split("."))]
    return [name for name in found if name not in FOREIGN]


def test_a_test_uses_public_names() -> None:
    uses = {p.relative_to(ROOT / "tests").as_posix(): private_uses(ast.parse(p.read_text())) for p in files_of_tests()}
    counts = {name: len(found) for name, found in uses.items() if found}
    more = {name: uses[name] for name, count in counts.items() if count > PRIVATE_IN_TESTS.get(name, 0)}
    assert not more, f"a private name in a test shows that a public one is missing: {more}"
    assert counts == PRIVATE_IN_TESTS, f"PRIVATE_IN_TESTS must say what is left: {counts}"


def files_of_tests() -> list[Path]:
    return sorted((ROOT / "tests").rglob("*.py"))


def test_nothing_escapes_the_formatter() -> None:
    marks = [f"# fmt: {word}" for word in ("skip", "off")]
    files = [
        p for f in ("src", "tests", "components", "pipelines", "infra", "benchmarks") for p in (ROOT / f).rglob("*.py")
    ]
    assert [str(p) for p in files if any(mark in p.read_text() for mark in marks)] == []
