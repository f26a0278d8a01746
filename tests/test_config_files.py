import shutil

import pytest
from mmengine.config import Config

from mmsimvit import ConfigError, config_files, copy_config, find_config
from tests.conftest import ROOT, run

CONFIGS = ROOT / 'configs'


@pytest.mark.parametrize('name', ['maskrcnn_simvit_t_coco', 'maskrcnn_simvit_t_coco.py', 'configs/maskrcnn_simvit_t_coco.py'])
def test_a_config_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == str(CONFIGS / 'maskrcnn_simvit_t_coco.py')
    assert find_config('lit/lit_ti_imagenet.py') == find_config('lit_ti_imagenet') == str(CONFIGS / 'lit/lit_ti_imagenet.py')


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'maskrcnn_simvit_t_coco.py').touch()
    assert find_config('maskrcnn_simvit_t_coco.py') == 'maskrcnn_simvit_t_coco.py'


def test_a_checkpoint_in_the_place_of_a_config_is_named(tmp_path):
    (tmp_path / 'epoch_6.pth').touch()
    with pytest.raises(ConfigError, match='epoch_6.pth is not a config, .*; --help has the order of the arguments$'):
        find_config(str(tmp_path / 'epoch_6.pth'))


@pytest.mark.parametrize('name', ['maskrcnn_simvit_t_cocoo.py', 'lit/maskrcnn_simvit_t_coco.py',
                                  '/else/maskrcnn_simvit_t_coco.py'])
def test_an_unknown_config_names_the_nearest(name):
    with pytest.raises(ConfigError, match=f'config {name} does not exist, neither as .*; near to it: maskrcnn_simvit_t_coco, '):
        find_config(name)


def test_a_file_near_to_an_unknown_name_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my_detector.py').touch()
    with pytest.raises(ConfigError, match='near to it: my_detector.py$'):
        find_config('my_detectr.py')


def test_bases_are_found_by_their_paths_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config('_base_/fsdp.py') == find_config('configs/_base_/fsdp.py') == str(CONFIGS / '_base_/fsdp.py')
    for name in ('fsdp', '_base_/nowhere.py'):
        with pytest.raises(ConfigError):
            find_config(name)


def test_command_lines_take_names_and_end_with_one_line(tmp_path):
    out = run('-m', 'mmsimvit.train', 'maskrcnn_simvit_t_coo', cwd=tmp_path, code=1)
    assert out.strip().splitlines()[-1].startswith('error: config maskrcnn_simvit_t_coo does not exist')
    assert not any(tmp_path.iterdir())


def test_an_installed_wheel_brings_its_own(tmp_path, monkeypatch):
    """And not what lies beside it in site-packages."""
    shutil.copytree(CONFIGS, tmp_path / 'mmsimvit/.mim/configs')
    (tmp_path / 'configs').mkdir()
    monkeypatch.setattr(config_files, 'FOLDERS', (tmp_path / 'mmsimvit/.mim/configs', tmp_path / 'configs'))
    assert find_config('simvit_t_imagenet') == str(tmp_path / 'mmsimvit/.mim/configs/simvit_t_imagenet.py')


def test_names_are_of_one_config_each():
    stems = [path.stem for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts]
    assert len(set(stems)) == len(stems)


@pytest.mark.parametrize('name', [
    'maskrcnn_simvit_micro_custom', 'semfpn_simvit_micro_custom', 'simvit_micro_custom', 'lit_b_imagenet'])
def test_a_copy_is_the_same_config_anywhere(name, tmp_path):
    """What "copy the file" of the docs means, with the bases where they are."""
    copy = copy_config(name, str(tmp_path / 'new/mine.py'))
    assert Config.fromfile(copy).to_dict() == Config.fromfile(find_config(name)).to_dict()
    with pytest.raises(ConfigError, match=r'mine.py exists already'):
        copy_config(name, copy)
