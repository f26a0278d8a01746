from contextlib import nullcontext

import pytest
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS

from mmsimvit import DataError
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


@DATASETS.register_module(name='Nowhere', force=True)
class NoImages(BaseDataset):

    def load_data_list(self):
        return []


class Images(BaseDataset):

    def load_data_list(self):
        return [dict(number=number) for number in range(4)]


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(batch_size=4, drop_last=True), None),
    (dict(batch_size=8), None),
    (dict(batch_size=8, drop_last=True), r'4 images make no batch of 8, and drop_last=True .*batch_size to 4 or less'),
    (dict(batch_size=8, drop_last=True, sampler=dict(type='InfiniteSampler')), None),  # goes round the images
    (dict(dataset=dict(type='Nowhere'), batch_size=1), 'has no image left'),
])
def test_data_without_a_batch_is_refused(settings, message, tmp_path):
    run = CheckedDataRunner(Nothing(), work_dir=str(tmp_path), experiment_name=f'test_{tmp_path.name}', log_level='WARNING')
    loader = {**dict(dataset=Images(), sampler=dict(type='DefaultSampler', shuffle=False)), **settings}
    with pytest.raises(DataError, match=message) if message else nullcontext():
        run.build_dataloader(loader)
