"""What of a module's source decides its results: all but the words that only people read.

Comments, layout and docstrings do not count, nor does the wording of errors, help, progress and whatever is annotated
as `perfmis.stage.Prose`. Warnings that are written into tables and reports are results: they are never annotated so.
"""

import ast

# What these are called with reaches a person or a log, and no artifact.
ERRORS = frozenset({"UserError"})
SPOKEN = frozenset({"print"})
LOGGERS = frozenset({"logger"})
HELP = frozenset({"help", "description", "metavar"})
PROSE = "Prose"


def of(tree: ast.Module) -> str:
    """Return the source of a module without what only people read; the tree is changed."""
    return ast.unparse(_Meaning().visit(tree))


class _Wordless(ast.NodeTransformer):
    """Takes the words out of what is said; what is computed to be said stays.

    Args:
        all_words: Also single words, which elsewhere could be keys.
    """

    def __init__(self, *, all_words: bool) -> None:
        self._all = all_words

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        words = isinstance(node.value, str) and (self._all or any(c.isspace() for c in node.value))
        return ast.Constant("") if words else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        said = [self.visit(part.value) for part in node.values if isinstance(part, ast.FormattedValue)]
        return ast.Tuple(said, ast.Load())


class _Meaning(ast.NodeTransformer):
    """Takes out of a module what only people read."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and _is_text(first.value):
                node.body = node.body[1:] or [ast.Pass()]
        return super().generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        if _says(node.returns):
            node.body = [_Wordless(all_words=False).visit(statement) for statement in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if node.value and _says(node.annotation):
            node.value = _Wordless(all_words=False).visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _name(node.func) in ERRORS:
            return ast.Call(node.func, [], [])
        self.generic_visit(node)
        if _name(node.func) in SPOKEN or (isinstance(node.func, ast.Attribute) and _name(node.func.value) in LOGGERS):
            node.args = [_Wordless(all_words=True).visit(argument) for argument in node.args]
        node.keywords = [each for each in node.keywords if not (each.arg in HELP and _is_text(each.value))]
        for keyword in node.keywords:
            if keyword.arg in HELP:
                keyword.value = _Wordless(all_words=True).visit(keyword.value)
        return node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.exc, ast.Call):
            node.exc.args = [_Wordless(all_words=True).visit(argument) for argument in node.exc.args]
        return node


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _says(annotation: ast.expr | None) -> bool:
    """Say whether an annotation names prose, alone or in a collection."""
    return annotation is not None and any(
        (isinstance(node, ast.Name) and node.id == PROSE) or (isinstance(node, ast.Constant) and node.value == PROSE)
        for node in ast.walk(annotation)
    )
