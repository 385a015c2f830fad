"""The loader without what measures it: the methods that tell a `StageClock` something, less those statements."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

CLOCKS = frozenset({"stages", "profiled"})
"""Names of variables and attributes that are there to measure the stages, or to name them in a profile."""


class Without(ast.NodeTransformer):
    """Leaves out each statement that has to do with a clock, and those with what it has been asked for."""

    def __init__(self) -> None:
        self.gone = set(CLOCKS)

    def concerned(self, node: ast.AST | None) -> bool:
        names = [each.id if isinstance(each, ast.Name) else each.attr for each in ast.walk(node or ast.Pass())
                 if isinstance(each, ast.Name | ast.Attribute)]  # fmt: skip
        return not self.gone.isdisjoint(names)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if self.concerned(node) else self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST | None:
        return None if self.concerned(node) else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        if self.concerned(node.value):
            self.gone |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            return None
        node.targets = [target for target in node.targets if not self.concerned(target)]
        return self.generic_visit(node) if node.targets else None

    def visit_If(self, node: ast.If) -> Any:
        alternative = [kept for each in node.orelse if (kept := self.visit(each)) is not None]
        if self.concerned(node.test):
            return alternative or None
        body = [kept for each in node.body if (kept := self.visit(each)) is not None]
        if not body and not alternative:
            return None
        node.body, node.orelse = body or [ast.Pass()], alternative
        return node

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return self.visit(node.body) if self.concerned(node.test) else self.generic_visit(node)


def bare_code(function: FunctionType) -> CodeType:
    """What a method compiles to without what measures it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tree = ast.fix_missing_locations(Without().visit(tree))
    scope = dict(function.__globals__)
    exec(compile(tree, f"<bare {function.__qualname__}>", "exec", dont_inherit=True), scope)
    code: CodeType = scope[function.__name__].__code__
    wanted = function.__code__
    same = (code.co_freevars, code.co_argcount) == (wanted.co_freevars, wanted.co_argcount)
    if not same or code.co_code == wanted.co_code:
        raise RuntimeError(f"{function.__qualname__}: measures nothing, or cannot be had without")
    return code


@contextmanager
def switchable() -> Iterator[Callable[[bool], None]]:
    """A switch between the loader as it is and one that is not measured.

    What is switched is the code of its methods, so that it stays the same objects in the same places, and each version
    keeps what the interpreter has learned of it.
    """
    from hydrax_gpu import Dataloader
    from hydrax_gpu._engine.runner import Runner
    from hydrax_gpu._engine.stream import Stream

    methods: list[Any] = [
        *(Runner.turn, Runner._count, Runner._carry_out, Runner._dispatch, Runner._place),
        *(Stream.next, Stream._wait, Dataloader.__next__),
    ]
    codes = {method: (method.__code__, bare_code(method)) for method in methods}

    def measured(on: bool) -> None:
        for method, (usual, bare) in codes.items():
            method.__code__ = usual if on else bare

    try:
        yield measured
    finally:
        measured(True)
