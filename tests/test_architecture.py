"""What keeps the code base small and its layers apart and ruff and import-linter cannot see."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "secateur"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 400
MAX_ARGUMENTS = 7
# "module.function": why it needs more. Each line is a debt; add one only with its reason.
ALLOWED_ARGUMENTS: dict[str, str] = {}
ALLOWED_LINES = {
    "src/secateur/recipe.py": "checks of fields, which a library takes over",
    "src/secateur/runtimes/keras.py": "files, session, graph and MACs, which part when packages come",
}

FRAMEWORKS = ["keras", "tensorflow", "jax", "torch"]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, wherever in the file it does so."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from secateur import arrays` names the module in the alias, not in the base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def run_python(code: str, **environment: str) -> str:
    """The standard output of `code` in a clean process that sees the package alone."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def public_names() -> list[str]:
    return json.loads(
        run_python("import json, secateur; print(json.dumps(list(secateur.__all__)))")
    )


# --- what may import what -------------------------------------------------------------------------


def outside(path: Path, allowed: set[str]) -> list[str]:
    """The imports of a file outside the standard library and the allowed names."""
    return [
        name
        for name in imports(path)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(name == root or name.startswith(root + ".") for root in allowed)
    ]


@pytest.mark.parametrize("path", sorted((PACKAGE / "arrays").glob("*.py")), ids=module_name)
def test_arrays_import_only_numpy(path):
    assert outside(path, {"numpy", "secateur.arrays", "secateur.errors"}) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "reporting").rglob("*.py")), ids=module_name)
def test_reporting_imports_nothing_of_secateur_but_errors_and_records(path):
    mine = [name for name in imports(path) if name.split(".")[0] == "secateur"]
    allowed = ("secateur.errors", "secateur.records", "secateur.reporting")
    assert [name for name in mine if not name.startswith(allowed)] == []


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """(name of the function or method, line) of every call in a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                yield function.attr, node.lineno
            elif isinstance(function, ast.Name):
                yield function.id, node.lineno


@pytest.mark.parametrize(
    ("call", "home"), [("fit", "training.py"), ("Interpreter", "runtimes/litert.py")]
)
def test_one_place_only(call, home):
    """Training and interpreter loops exist once: everything else calls the function around them."""
    places = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        for name, _ in calls(path)
        if name == call
    }
    assert places == {home}


def test_no_code_is_loaded_from_files():
    """No pickle, no unsafe loading: opening somebody's model or data runs none of their code."""
    found = []
    for path in SOURCES:
        found += [f"{path.name}: {name}" for name in imports(path) if name.startswith("pickle")]
        found += [f"{path.name}:{n}: {name}" for name, n in calls(path) if name in {"eval", "exec"}]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
                unsafe = ("allow_pickle", True), ("safe_mode", False)
                if (node.arg, node.value.value) in unsafe:
                    found.append(f"{path.name}:{node.lineno}: {node.arg}")
    assert found == []


def test_every_folder_of_modules_is_a_package():
    """Without its __init__.py a folder is imported under a second name, and its classes twice."""
    folders = {path.parent for path in SOURCES}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


# --- size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *SOURCES,
        *sorted((ROOT / "tests").rglob("*.py")),
        *sorted((ROOT / "benchmarks").rglob("*.py")),
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    # A table of cases, or a benchmark that runs on its own, is read from top to bottom: it may be longer.
    limit = MAX_LINES if path in SOURCES else 550
    assert lines <= limit or path.relative_to(ROOT).as_posix() in ALLOWED_LINES


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions of a module and public methods of its public classes, by qualified name."""
    scopes = [("", tree(path).body)]
    for prefix, body in scopes:
        for node in body:
            name = getattr(node, "name", "_")
            if name.startswith("_") and name != "__init__":
                continue
            if isinstance(node, ast.ClassDef):
                scopes.append((f"{prefix}{name}.", node.body))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module_name(path)}.{prefix}{name}", node


def test_public_functions_take_few_arguments():
    """Positional ones; what is keyword-only names itself at the call and may be more."""
    crowded = {}
    for path in SOURCES:
        if path.name.startswith("cli"):
            continue  # options of a command: read by name, never by place
        for name, node in public_functions(path):
            arguments = [*node.args.posonlyargs, *node.args.args]
            count = sum(argument.arg not in {"self", "cls"} for argument in arguments)
            if count > MAX_ARGUMENTS and name not in ALLOWED_ARGUMENTS:
                crowded[name] = count
    assert crowded == {}


# --- the public face ------------------------------------------------------------------------------


def test_no_module_bears_a_public_name():
    """`secateur.export` must not turn from a function into a module after some import."""
    modules = {module_name(path).split(".")[1] for path in SOURCES if path.parent != PACKAGE}
    modules |= {path.stem for path in PACKAGE.glob("*.py")}
    modules |= {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert modules & set(public_names()) == set()


def test_public_names_stay_what_they_are_and_are_documented():
    """Each name twice, forwards and backwards, with every module imported in between."""
    code = """
import importlib, inspect, json, pkgutil, types, secateur
names = list(secateur.__all__)
assert len(names) == len(set(names)), "a name twice in __all__"
first = {name: getattr(secateur, name) for name in names}
for module in pkgutil.walk_packages(secateur.__path__, "secateur."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
wrong = []
for name in reversed(names):
    value = getattr(secateur, name)
    if value is not first[name]:
        wrong.append(f"{name} changed to {value!r}")
    if isinstance(value, types.ModuleType):
        wrong.append(f"{name} is a module")
    own = vars(value).get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
    if callable(value) and not (own or "").strip():
        wrong.append(f"{name} has no docstring")
wrong += sorted(set(names) - set(dir(secateur)))
print(json.dumps(wrong))
"""
    assert json.loads(run_python(code).splitlines()[-1]) == []


def loaded(code: str, unwanted: list[str]) -> list[str]:
    """Which of the unwanted packages a process has loaded after running `code`."""
    report = f"\nimport json, sys; print(json.dumps([m for m in {unwanted!r} if m in sys.modules]))"
    return json.loads(run_python(code + report).splitlines()[-1])


def test_importing_the_package_loads_no_framework():
    code = "import secateur, secateur.errors, secateur.cli; dir(secateur)"
    assert loaded(code, [*FRAMEWORKS, "numpy", "sklearn"]) == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["measure", "--help"]])
def test_help_loads_no_framework(arguments):
    code = f"""
import sys
sys.argv = ["secateur", *{arguments!r}]
from secateur.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert loaded(code, [*FRAMEWORKS, "numpy", "sklearn"]) == []


@pytest.mark.parametrize(
    "module",
    ["datasets", "measurement", "artifact", "promises", "runtimes.litert", "reporting"],
)
def test_light_modules_load_no_framework(module):
    """A `.tflite` is measured and a report is written without waiting for TensorFlow."""
    assert loaded(f"import secateur.{module}", FRAMEWORKS) == []


# --- the repository -------------------------------------------------------------------------------


DISTRIBUTIONS = {
    "PIL": "pillow",
    "docx": "python-docx",
    "sklearn": "scikit-learn",
}  # where it is not the import name with dashes


def test_every_import_is_declared():
    """A package that only happens to be installed is missing on the next machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[\[<>=!~; ]", line)[0] for lines in lists for line in lines}
    found = {name.split(".")[0] for path in SOURCES for name in imports(path)}
    found -= {*sys.stdlib_module_names, "secateur"}
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in found} - declared == set()


def repository_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_path_of_somebodys_machine():
    """Only `.ci/run` may name the folder beside the checkout; nobody's own folders appear."""
    slash = "/"  # spelt in pieces, or this file would find itself
    private = re.compile(
        rf"(?<![\w.<-]){slash}(?:work|root|opt){slash}[a-z.]"
        rf"|{slash}home{slash}[a-z]+{slash}|{slash}Users{slash}[A-Za-z]+{slash}"
        rf"|{slash}tmp{slash}(?:dev|bash)|\.\.{slash}shared"
    )
    found = []
    for path in repository_files():
        relative = path.relative_to(ROOT).as_posix()
        if relative == ".ci/run" or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{relative}: {match.group()}" for match in private.finditer(text)]
    assert found == []
