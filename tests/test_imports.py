"""Which parts of the package import which: downwards alone, and never in a circle."""
import ast
from graphlib import TopologicalSorter

from tests.conftest import ROOT

# A part imports those below it; parts of one line do not import each other. '' is __init__.py, which imports what it offers.
ORDER = [
    ['__main__', 'train', 'test', 'infer', 'doctor'], ['cli'], ['compare'], [''], ['analysis', 'engine'],
    ['models', 'checkpoints', 'necks', 'classifiers'], ['datasets', 'swap'], ['fitting'],
    ['config_files', 'files', 'mmcv_ops', 'dry_run'], ['stacks'], ['backbones'], ['weights'], ['layers'], ['ops', 'errors']]
LEVELS = {part: level for level, parts in enumerate(ORDER) for part in parts}


def find_imports():
    """Module -> the modules of mmsimvit that it imports, anywhere in it."""
    paths = {}
    for path in (ROOT / 'mmsimvit').rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        paths['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    imports = {}
    for module, path in paths.items():
        package = module.split('.')[:None if path.name == '__init__.py' else -1]
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package[:len(package) - node.level + 1] if node.level else []
                base = '.'.join([*above, *([node.module] if node.module else [])])
                found |= {name if (name := f'{base}.{alias.name}') in paths else base for alias in node.names}
        imports[module] = found & paths.keys() - {module}
    return imports


def part_of(module):
    return module.partition('.')[2].partition('.')[0]


def test_no_module_is_imported_by_what_it_imports():
    list(TopologicalSorter(find_imports()).static_order())  # or else it raises a CycleError that names them


def test_imports_go_downwards():
    found = [(module, other) for module, others in find_imports().items() for other in others
             if part_of(module) != part_of(other)]
    assert not [f'{module} imports {other}' for module, other in found
                if LEVELS[part_of(other)] <= LEVELS[part_of(module)]]
