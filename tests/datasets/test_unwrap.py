from types import SimpleNamespace

from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset

from mmsimvit.datasets.unwrap import unwrap_dataset


def test_configs():
    leaves = [dict(type='CocoDataset', ann_file=name) for name in 'abc']
    wrapped = Config(dict(dataset=dict(type='ConcatDataset', datasets=[
        leaves[0], dict(type='RepeatDataset', dataset=leaves[1]), dict(type='Shapes', dataset=leaves[2])]))).dataset
    assert unwrap_dataset(wrapped) == leaves
    assert unwrap_dataset(wrapped, 'Shapes') == [*leaves[:2], wrapped.datasets[2]]
    unwrap_dataset(wrapped)[1].ann_file = 'changed'
    assert wrapped.datasets[1].dataset.ann_file == 'changed'


def test_built_data_sets():
    leaves = [BaseDataset(lazy_init=True, serialize_data=False) for _ in range(2)]
    for leaf in leaves:
        leaf.load_data_list = lambda: [dict()]
        leaf.full_init()
    for wrapped in (ConcatDataset(leaves), SimpleNamespace(dataset=ConcatDataset(leaves))):
        assert [*map(id, unwrap_dataset(wrapped))] == [*map(id, leaves)]
    assert unwrap_dataset(RepeatDataset(leaves[0], 2))[0] is leaves[0]
