"""What docstrings must have: one for everything public, the errors that are raised, the shapes of tensors.

A method may leave its errors to the docstring of its class.
"""
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'mmsimvit').rglob('*.py'))
STATE_DICT = re.compile(r'(dict|Mapping)\[str, Tensor\]')  # whose tensors have no shape in common
SHAPE = re.compile(r'``[^`]*(?<!\w)\([^`()]+,|\bshapes?\b')  # ``(B, C, H, W)``, not ``fc2(x, y)``


def public_parts(path: str) -> Iterator[tuple[str, ast.stmt, ast.ClassDef | None]]:
    """Public functions, classes and methods of a module, by name; methods with their class."""
    for node in ast.parse((ROOT / path).read_text(encoding='utf-8')).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            yield node.name, node, None
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.FunctionDef) and re.match(r'[^_]|__(init|call)__$', part.name):
                    yield f'{node.name}.{part.name}', part, node


def own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """All in a function but what lies in functions inside."""
    todo = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)


def raised(function: ast.FunctionDef) -> set[str]:
    calls = [node.exc.func for node in own_nodes(function) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {ast.unparse(call).rpartition('.')[2] for call in calls}


def told(docstring: str) -> set[str]:
    """What is named under ``Raises:``."""
    section = re.search(r'^Raises:\n((?:    .*\n?|\n)*)', docstring, re.MULTILINE)
    return set(re.findall(r'^    (\w+): ', section[1], re.MULTILINE)) if section else set()


def problems(path: str) -> Iterator[str]:
    for name, node, owner in public_parts(path):
        docstring = ast.get_docstring(node) or ''
        if not docstring and name.rpartition('.')[2] != '__init__':
            yield f'{name} has no docstring'
        if isinstance(node, ast.ClassDef):
            continue
        in_class = ast.get_docstring(owner) or '' if owner else ''
        for error in sorted(raised(node) - told(docstring) - told(in_class)):
            yield f'{name} does not name {error} under Raises'
        annotations = [arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg)] + [node.returns]
        takes_tensors = any('Tensor' in STATE_DICT.sub('', ast.unparse(word)) for word in annotations if word)
        if takes_tensors and not SHAPE.search(docstring):
            yield f'{name} says no shapes'


@pytest.mark.parametrize('path', MODULES)
def test_docstrings_say_what_they_must(path):
    found = list(problems(path))
    assert not found, '\n'.join(found)
