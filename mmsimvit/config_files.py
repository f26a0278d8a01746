"""The configs that mmsimvit brings, found by name wherever it is installed."""
import difflib
import re
from pathlib import Path

from .errors import ConfigError

__all__ = ['FOLDERS', 'PACKAGE', 'ConfigError', 'copy_config', 'find_config']
PACKAGE = Path(__file__).resolve().parent
# Of an installed wheel, where mim looks for them as well; of a checkout.
FOLDERS = PACKAGE / '.mim/configs', PACKAGE.parent / 'configs'


def find_config(name: str) -> str:
    """The path of a config.

    Args:
        name: a file, which is given back as it is; or the name of a config of this project, with or without folder and
            ending: ``maskrcnn_simvit_t_coco``, ``configs/maskrcnn_simvit_t_coco.py``, ``lit/maskrcnn_lit_ti_coco.py``; what
            these inherit from, by its whole path: ``_base_/fsdp.py``.

    Raises:
        ConfigError: if it is neither, or a file of another kind.
    """
    if Path(name).is_file():
        if Path(name).suffix not in ('.py', '.json', '.yaml', '.yml'):
            raise ConfigError(f'{name} is not a config, which ends with .py; --help has the order of the arguments')
        return name
    folder = next((folder for folder in FOLDERS if folder.is_dir()), PACKAGE)
    known = {path.stem: path for path in sorted(folder.rglob('*.py')) if '_base_' not in path.parts}
    if '_base_' in Path(name).parts and (folder / name.removeprefix('configs/')).is_file():
        return str(folder / name.removeprefix('configs/'))
    path = known.get(Path(name).stem)
    if path and Path('/configs', path.relative_to(folder)).with_suffix('').match(str(Path(name).with_suffix(''))):
        return str(path)
    beside = {path.stem: path.as_posix() for path in sorted(Path(name).parent.glob('*.py'))}
    found = difflib.get_close_matches(Path(name).stem, [*{**known, **beside}], n=3)
    near = [beside.get(stem, stem) for stem in found]
    raise ConfigError(f'config {name} does not exist, neither as a file nor among the {len(known)} in {folder}'
                      + (f'; near to it: {", ".join(near)}' if near else ''))


def copy_config(name: str, path: str) -> str:
    """Copy a config of this project to where it can be changed; what it inherits from stays where it is.

    Args:
        name: as for ``find_config``.
        path: the new file, in a folder that is made if need be.

    Returns:
        The path of the copy.

    Raises:
        ConfigError: if there is no such config, or the new file exists.
    """
    source = Path(find_config(name)).resolve()
    if Path(path).exists():
        raise ConfigError(f'{path} exists already; give another name')

    def absolute(match: re.Match[str]) -> str:
        return re.sub(r"'(\.\.?/[^']+)'", lambda found: repr((source.parent / found[1]).resolve().as_posix()), match[0])

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(re.sub(r'^_base_ = (\[[^]]*]|.*)', absolute, source.read_text(), count=1, flags=re.M))
    return path
