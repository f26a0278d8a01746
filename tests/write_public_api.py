"""Write tests/public_api.txt: what the public modules offer, as their source has it. Look at the diff before you keep it."""
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE = ROOT / 'tests/public_api.txt'
MODULES = ('mmsimvit', 'mmsimvit.backbones', 'mmsimvit.ops', 'mmsimvit.engine', 'mmsimvit.datasets', 'mmsimvit.checkpoints',
           'mmsimvit.config_files')
WIDTH = 120  # of a line; of a longer signature each parameter has a line of its own
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


class Source:
    """A module, read but not imported, so that no version of Python or of a library has a say in it."""

    def __init__(self, module: str):
        path = ROOT / module.replace('.', '/')
        self.module, self.package = module, module if path.is_dir() else module.rpartition('.')[0]
        self.text = (path / '__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text(encoding='utf-8')
        self.nodes = list(statements(ast.parse(self.text)))

    def of(self, node: ast.AST) -> str:
        """The source of a node, on one line."""
        return ' '.join((ast.get_source_segment(self.text, node) or '').split())

    def public_names(self) -> list[str]:
        """Those of ``__all__``, or else what is defined here without an underscore."""
        for node in self.nodes:
            if '__all__' in assigned(node):
                return ast.literal_eval(node.value)
        return [name for node in self.nodes for name in (*defined(node), *assigned(node)) if not name.startswith('_')]

    def find(self, name: str) -> tuple['Source', ast.stmt]:
        """Where a name is defined, and how; it may come from another module of the package."""
        for node in self.nodes:
            if name in defined(node) or name in assigned(node):
                return self, node
            if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
                parents = self.package.split('.')
                return Source('.'.join([*parents[:len(parents) + 1 - node.level], node.module])).find(name)
        raise ValueError(f'{name} is public in {self.module}, which neither defines nor imports it')

    def describe(self, node: ast.stmt) -> Iterator[str]:
        if isinstance(node, ast.ClassDef):
            yield from self.describe_class(node)
        elif isinstance(node, ast.FunctionDef):
            yield from self.describe_function(node)
        else:
            yield from self.describe_values(node)

    def describe_class(self, node: ast.ClassDef) -> Iterator[str]:
        """A class with what its own body has; its bases say what else it has."""
        yield f'class {node.name}({", ".join(map(self.of, node.bases))})'
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and (not part.name.startswith('_') or part.name.endswith('__')):
                yield from self.describe_function(part, f'{node.name}.')
            else:
                yield from self.describe_values(part, f'{node.name}.')

    def describe_values(self, node: ast.stmt, owner: str = '') -> Iterator[str]:
        """What is assigned: in whole if it is short, or else the keys of a dict."""
        for name in assigned(node):
            if name.startswith('_'):
                continue
            line = owner + name + (f': {self.of(node.annotation)}' if isinstance(node, ast.AnnAssign) else '')
            if node.value and len(whole := f'{line} = {self.of(node.value)}') <= WIDTH:
                line = whole
            elif node.value:
                keys = map(self.of, filter(None, node.value.keys)) if isinstance(node.value, ast.Dict) else ()
                line += f' = {{{", ".join(f"{key}: ..." for key in keys)}}}' if keys else ' = ...'
            yield line

    def describe_function(self, node: ast.FunctionDef, owner: str = '') -> Iterator[str]:
        yield from (f'@{self.of(decorator)}' for decorator in node.decorator_list if 'register' not in self.of(decorator))
        parameters, end = list(self.parameters(node.args)), f') -> {self.of(node.returns) if node.returns else "?"}'
        if node.name == '__init__':
            end = ')'
        line = f'def {owner}{node.name}({", ".join(parameters)}{end}'
        yield from [line] if len(line) <= WIDTH else [f'def {owner}{node.name}(', *(f'    {word},' for word in parameters), end]

    def parameters(self, args: ast.arguments) -> Iterator[str]:
        positional = args.posonlyargs + args.args
        without = len(positional) - len(args.defaults)
        for index, (arg, default) in enumerate(zip(positional, [None] * without + args.defaults)):
            yield self.parameter(arg, default)
            if index + 1 == len(args.posonlyargs):
                yield '/'
        if args.vararg or args.kwonlyargs:
            yield '*' + (self.parameter(args.vararg) if args.vararg else '')
        yield from map(self.parameter, args.kwonlyargs, args.kw_defaults)
        if args.kwarg:
            yield '**' + self.parameter(args.kwarg)

    def parameter(self, arg: ast.arg, default: ast.expr | None = None) -> str:
        annotation = f': {self.of(arg.annotation)}' if arg.annotation else ''
        return arg.arg + annotation + (f'{" = " if annotation else "="}{self.of(default)}' if default else '')


def statements(node: ast.Module | ast.If) -> Iterator[ast.stmt]:
    """Those of a module, also under conditions."""
    for statement in node.body:
        yield from statements(statement) if isinstance(statement, ast.If) else [statement]


def defined(node: ast.stmt) -> list[str]:
    return [node.name] if isinstance(node, DEFINITIONS) else []


def assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def public_api() -> str:
    lines, seen = [], {}
    for module in MODULES:
        lines += [f'# {module}', '']
        public = Source(module)
        for name in sorted(public.public_names()):
            source, node = public.find(name)
            before = seen.setdefault((source.module, name), module)
            lines += source.describe(node) if before == module else [f'{name}, see {before}']
        lines.append('')
    return '\n'.join(lines)


if __name__ == '__main__':
    FILE.write_text(public_api(), encoding='utf-8')
