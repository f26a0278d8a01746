import pytest
from mmengine.config import Config
from mmengine.model import BaseModel

from mmsimvit.engine.pictures import read_scalars
from mmsimvit.engine.runner import CheckedDataFlexibleRunner, CheckedDataRunner, build_runner, format_configs_once


class Nothing(BaseModel):

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return {}


@pytest.mark.parametrize('kind', [CheckedDataRunner, CheckedDataFlexibleRunner])
def test_runs_in_one_process_log_to_their_own_folders(kind, tmp_path):
    for step, name in enumerate(('first', 'second')):
        run = kind(Nothing(), work_dir=str(tmp_path / name), experiment_name=f'{kind.__name__}_{name}', log_level='WARNING',
                   visualizer=dict(type='Visualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')]))
        run.visualizer.add_scalars(dict(loss=1.0), step=step)
    for step, name in enumerate(('first', 'second')):
        assert read_scalars(tmp_path / name) == [dict(loss=1.0, step=step)]


def test_a_run_formats_its_config_once(monkeypatch):
    monkeypatch.setattr(CheckedDataRunner, 'from_cfg', lambda cfg: cfg.pretty_text)
    assert build_runner(Config(dict(lr=1e-3))) == 'lr = 0.001\n'
    assert Config.pretty_text.fget.__module__ == 'mmsimvit.engine.runner'


def test_a_config_is_formatted_once_until_it_is_changed(monkeypatch):
    formatted = []
    monkeypatch.setattr(Config, 'pretty_text', property(lambda cfg: formatted.append(cfg.lr) or f'lr = {cfg.lr}\n'))
    format_configs_once.__wrapped__()
    cfg, copy = Config(dict(lr=1e-3)), Config(dict(lr=1e-3))
    assert cfg.pretty_text == cfg.pretty_text == copy.pretty_text == 'lr = 0.001\n'
    assert formatted == [1e-3]
    cfg.lr = 1e-4
    assert cfg.pretty_text == 'lr = 0.0001\n'
    assert copy.pretty_text == 'lr = 0.001\n'
