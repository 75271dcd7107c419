"""The house's rules that no single module's test can hold: direction of imports, names, sizes, what may not stand in it."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("corpora", "pretrain", "finetune", "launch")  # each may import those before it
MAX_LINES = 400
LONG: dict[str, str] = {}  # path -> why this file is longer
DEFECTS = range(1, 14)  # of the released code (docs/method.md)


@cache
def tracked() -> tuple[Path, ...]:
    """Files of the repository: those that git has or would take."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 and done.stdout:
        found = [ROOT / line for line in done.stdout.splitlines()]
    else:  # an unpacked archive
        hidden = ("build", "dist", "runs")
        found = [
            path
            for path in ROOT.rglob("*")
            if not any(
                (part.startswith(".") and part != ".ci") or part in hidden
                for part in path.relative_to(ROOT).parts
            )
        ]
    return tuple(sorted(path for path in found if path.is_file()))


def sources(*folders: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING:`, which never run."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            continue
        yield from nodes(child)


def imports_of(path: Path) -> set[str]:
    """Full names that a module imports, inside functions too; relative ones resolved."""
    names = set()
    for node in nodes(parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = name_of(path).split(".") + (["-"] if path.name == "__init__.py" else [])
                base = ".".join([*here[: -node.level], *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    later = set(PACKAGES[PACKAGES.index(package) + 1 :])
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports_of(path)
        if name.split(".")[0] in later | {"tests"}
    ]
    assert not wrong


def test_no_import_goes_in_a_circle() -> None:
    modules = {name_of(path): path for path in sources(*PACKAGES)}
    graph = {
        module: {name for name in imports_of(path) if name in modules and name != module}
        for module, path in modules.items()
    }
    # `from package import module` runs the package too, but its empty __init__ imports nothing back.
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_nothing_in_launch_is_named_like_a_package_that_is_imported() -> None:
    imported = {
        name.split(".")[0] for path in sources(*PACKAGES, "tests", "benchmarks") for name in imports_of(path)
    }
    imported |= set(PACKAGES)
    inside = {
        part.split(".")[0]: path.relative_to(ROOT)
        for path in tracked()
        if path.relative_to(ROOT).parts[0] == "launch"
        for part in path.relative_to(ROOT).parts[1:]
        if not part.startswith("__")
    }
    assert inside and not {str(inside[name]) for name in set(inside) & imported}


def test_no_file_is_longer_than_400_lines_without_a_reason() -> None:
    long = {}
    for path in sources(*PACKAGES, "tests", "benchmarks"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES and str(path.relative_to(ROOT)) not in LONG:
            long[str(path.relative_to(ROOT))] = lines
    assert not long


# Written so that this file does not match itself.
MACHINE = {
    "a folder of one machine": r"(?<![\w.~])/(?:wor[k]|roo[t]|tm[p]|home/\w+|Users/\w+)/",
    "where the real data lie": r"share[d]/(?:dat[a]|spe[c])\b|PPT_DAT[A]\s*=\s*[\"'/.]",
    "a package index": r"--(?:extra-)?inde[x]-url|PIP_(?:EXTRA_)?INDE[X]|--find-link[s]|trusted-hos[t]",
}


def test_nothing_names_a_place_on_one_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found += [
                f"{path.relative_to(ROOT)} line {number}: {what}"
                for what, pattern in MACHINE.items()
                if re.search(pattern, line)
            ]
    assert not found


PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(path: Path) -> list[str]:
    """What in a module could run code that came with somebody's file."""
    found = [f"imports {name}" for name in imports_of(path) if name.split(".")[0] in PICKLES]
    for node in nodes(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if call == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if options.get("allow_pickle") == "True" or options.get("trust_remote_code") == "True":
            found.append(f"{call} that may run code")
        if call in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"):
            found.append(call)
    return found


def test_nothing_that_may_come_from_someone_else_is_a_pickle() -> None:
    wrong = {str(path.relative_to(ROOT)): unsafe(path) for path in sources(*PACKAGES) if unsafe(path)}
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "numpy.load(file, allow_pickle=True)",
        "yaml.load(file)",
    ],
)
def test_the_check_for_pickles_sees_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "module.py").write_text(text)
    assert unsafe(tmp_path / "module.py")


def defects_tested() -> dict[int, list[str]]:
    """Defect -> tests marked with it."""
    found: dict[int, list[str]] = {}
    for path in sources("tests"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.defect":
                    for number in mark.args:
                        found.setdefault(ast.literal_eval(number), []).append(f"{path.name}::{node.name}")
    return found


@pytest.mark.parametrize("number", DEFECTS)
def test_every_defect_of_the_released_code_has_a_test(number: int) -> None:
    if number not in defects_tested():
        pytest.fail(f"no test is marked with pytest.mark.defect({number})")


def test_marks_name_defects_that_exist() -> None:
    assert set(defects_tested()) <= set(DEFECTS)
