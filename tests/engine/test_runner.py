import pytest
from mmengine.model import BaseModel

from mmsimvit.analysis.pictures import read_scalars
from mmsimvit.engine.runner import CheckedDataFlexibleRunner, CheckedDataRunner


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
