"""What people read changes no fingerprint, and all else does."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

from perfmis import meaning

SOURCES = sorted((REPOSITORY / "perfmis").rglob("*.py"))
EVERY = 9  # constants of a module; all of them would take minutes
modules = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))

SAME = {
    "an error's words": ('raise UserError(f"{name}: bad")', 'raise UserError(f"{name} is wrong in {path}")'),
    "an error's words, made elsewhere": (
        'def why(n: int) -> Prose:\n    return f"{n} is bad"',
        'def why(n: int) -> Prose:\n    return f"bad is {n}"',
    ),
    "a reason with a name": ('told: Prose = f"off by {n}"', 'told: Prose = f"wrong by {n}"'),
    "a list of reasons": ('faults: dict[Prose, bool] = {"a b": x}', 'faults: dict[Prose, bool] = {"c d": x}'),
    "another exception": ('raise ValueError("this is wrong")', 'raise ValueError("that is wrong")'),
    "help": ('parser.add_argument("--n", help="rows")', 'parser.add_argument("--n", help="lines")'),
    "a line of a log": ('print(f"{n} rows", file=sys.stderr)', 'print(f"lines: {n}", file=sys.stderr)'),
    "a docstring": ('def f() -> int:\n    "Sum."\n    return 1', 'def f() -> int:\n    "Add."\n    return 1'),
    "a comment": ("x = 1  # one", "x = 1"),
}
OTHER = {
    "a condition of an error": ('if n > 1:\n    raise UserError("n")', 'if n > 2:\n    raise UserError("n")'),
    "what is done before an error": ('f(1)\nraise UserError("n")', 'f(2)\nraise UserError("n")'),
    "the kind of an exception": ('raise UserError("n")', 'raise ValueError("n")'),
    "a warning in a table": ('row["warning"] = "few samples"', 'row["warning"] = "not many samples"'),
    "a key in a function that says why": (
        'def why(c: dict) -> Prose:\n    return "is bad" if c["a"] else ""',
        'def why(c: dict) -> Prose:\n    return "is bad" if c["b"] else ""',
    ),
    "a default": ('parser.add_argument("--n", default=1, help="n")', 'parser.add_argument("--n", default=2, help="n")'),
    "an argument's name": ('parser.add_argument("--n", help="n")', 'parser.add_argument("--m", help="n")'),
    "what is computed to be said": ("print(f(1))", "print(f(2))"),
    "what is added to a list of warnings": ('warnings.append("few samples")', 'warnings.append("many samples")'),
    "a method that is called print": ('page.print("one two")', 'page.print("two one")'),
}


def meant(source: str) -> str:
    return meaning.of(ast.parse(source))


@pytest.mark.parametrize(("before", "after"), SAME.values(), ids=SAME)
def test_what_only_people_read_does_not_count(before: str, after: str) -> None:
    assert meant(before) == meant(after)


@pytest.mark.parametrize(("before", "after"), OTHER.values(), ids=OTHER)
def test_all_else_counts(before: str, after: str) -> None:
    assert meant(before) != meant(after)


def spoken(tree: ast.Module) -> set[ast.AST]:
    """Return all nodes below the places where words are for people alone, found without `meaning`."""
    places: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            places += [*node.args, *node.keywords] if called == "UserError" else []
            places += node.args if called == "print" else []
            places += [each for each in node.keywords if each.arg in ("help", "description", "metavar")]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            places += node.exc.args
        elif isinstance(node, ast.AnnAssign) and node.value and "Prose" in ast.unparse(node.annotation):
            places.append(node.value)
        elif isinstance(node, ast.FunctionDef) and node.returns and "Prose" in ast.unparse(node.returns):
            places += node.body
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            places.append(node)  # a docstring
    return {below for place in places for below in ast.walk(place)}


def constants(tree: ast.Module) -> list[ast.Constant]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]


@modules
def test_no_word_that_people_read_counts(path: Path) -> None:
    """In every error, help text, line of a log, docstring and card of the package at once."""
    tree = ast.parse(path.read_text())
    for node in spoken(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            node.value = f"{node.value} and so on"
    assert meaning.of(tree) == meant(path.read_text())


def test_no_program_decides_by_what_a_helper_says_to_people() -> None:
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    saying = {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "Prose"
    }
    compared = [
        ast.unparse(node)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.Match)
        for called in ast.walk(node.subject if isinstance(node, ast.Match) else node)
        if isinstance(called, ast.Call) and getattr(called.func, "id", getattr(called.func, "attr", "")) in saying
    ]
    assert saying
    assert not compared


@modules
def test_every_other_constant_counts(path: Path) -> None:
    source = path.read_text()
    before = meant(source)
    number = len(constants(ast.parse(source)))
    for place in range(0, number, EVERY):
        tree = ast.parse(source)
        node = constants(tree)[place]
        if node in spoken(tree):
            continue
        node.value = f"{node.value} more" if isinstance(node.value, str) else 271828
        assert meaning.of(tree) != before, f"line {node.lineno}"
