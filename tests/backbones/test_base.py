"""What the base carries beyond the four stages of the backbones here, on four that are no paper's."""
import pytest
import torch
from torch import nn

from mmsimvit import CheckpointError, PlainBackbone, PyramidBackbone, SimViT
from mmsimvit.backbones.base import FeatureInfo, Layer
from mmsimvit.engine.fsdp import wrap_blocks
from mmsimvit.layers import FFN, Block, PatchEmbed, Stage
from mmsimvit.weights import match


class StageWithToken(Stage):
    """A stage that holds a class token, which is added to each position."""

    def __init__(self, *args):
        super().__init__(*args)
        self.cls_token = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return super().forward(x) + self.cls_token[:, None, None]


class ThreeStages(PyramidBackbone):
    """As CvT: three stages, drop path in the last alone, and a parameter in a stage that is no module."""
    arch_zoo = {'a': dict(embed_dims=(4, 6, 8), depths=(1, 2, 2))}
    patch_sizes = (4, 2, 2)

    def __init__(self, arch='a', out_indices=(0, 1, 2), frozen_stages=-1, init_cfg=None, **overrides):
        super().__init__(arch, 3, out_indices, frozen_stages, 0.5, False, init_cfg, **overrides)
        self.build_stages()

    def get_drop_path_rates(self):
        return [[0.] * depth for depth in self.arch['depths'][:-1]] + [[0., self.drop_path_rate]]

    def build_stage(self, index, in_channels, drop_path_rates):
        dims = self.arch['embed_dims'][index]
        blocks = [Block(None, FFN(dims, dims), dims, rate, 1e-5) for rate in drop_path_rates]
        return (StageWithToken if index == 2 else Stage)(PatchEmbed(in_channels, dims, self.patch_sizes[index]), blocks, False)


class FourEqualMaps(PyramidBackbone):
    """As MPViT, a stem outside of the stages and the next stage's channels; as GPViT, four maps of stride 8."""
    arch_zoo = {'a': dict(embed_dims=(4, 6, 8, 10), depths=(1, 1, 1, 1))}
    patch_sizes = (8, 1, 1, 1)

    def __init__(self, arch='a', out_indices=(0, 1, 2, 3), frozen_stages=-1, init_cfg=None):
        super().__init__(arch, 3, out_indices, frozen_stages, 0., False, init_cfg)
        self.stem = nn.Conv2d(3, self.arch['embed_dims'][0], 8, 8)
        self.build_stages()

    def describe_maps(self):
        dims = self.arch['embed_dims']
        return [FeatureInfo(channels, 8) for channels in (*dims[1:], dims[-1])]

    def layer_order(self):
        return [Layer('stem', 0), *super().layer_order()[1:]]

    def build_stage(self, index, in_channels, drop_path_rates):
        if index == 0:
            in_channels = self.arch['embed_dims'][0]
        dims = self.describe_maps()[index].channels
        return Stage(PatchEmbed(in_channels, dims, 1), [Block(None, FFN(dims, dims), dims, rate, 1e-5)
                                                        for rate in drop_path_rates], False)

    def forward_features(self, x):
        return super().forward_features(self.stem(x))


class Plain(PlainBackbone):
    """One stride, a class token, maps from chosen blocks with norms of their own, no stages."""
    arch_zoo = {'a': dict(embed_dims=4, depth=3, num_heads=1)}
    has_cls_token = True
    adds_norms = True

    def __init__(self, arch='a', out_indices=-1, frozen_stages=-1, init_cfg=None, **arguments):
        super().__init__(arch, 3, out_indices, frozen_stages, 0., False, init_cfg, **arguments)
        self.build_blocks()

    def build_patch_embed(self):
        return PatchEmbed(3, self.arch['embed_dims'], 16, has_norm=False)

    def build_pos_embed(self):
        return nn.Identity()

    def build_block(self, index, drop_path_rate):
        dims = self.arch['embed_dims']
        return Block(None, FFN(dims, dims), dims, drop_path_rate, 1e-5)

    def norm_layer(self, index):
        return nn.LayerNorm


class PlainWithoutToken(Plain):
    """As GPViT and UViT."""
    has_cls_token = False


TINY = pytest.mark.parametrize(('kind', 'channels', 'strides', 'depths'), [
    (ThreeStages, (4, 6, 8), (4, 8, 16),
     {'stages.0.patch_embed.proj.bias': 0, 'stages.1.blocks.1.norm2.bias': 3, 'stages.2.patch_embed.norm.bias': 3,
      'stages.2.cls_token': 3, 'stages.2.blocks.1.ffn.fc1.bias': 5, 'head.fc.bias': 6}),
    (FourEqualMaps, (6, 8, 10, 10), (8, 8, 8, 8),
     {'stem.weight': 0, 'stages.0.patch_embed.proj.bias': 0, 'stages.3.blocks.0.norm2.bias': 4, 'head.fc.bias': 5}),
    (Plain, (4, ), (16, ),
     {'cls_token': 0, 'patch_embed.proj.bias': 0, 'blocks.2.norm2.bias': 3, 'norms.2.weight': 3, 'head.fc.bias': 4}),
    (PlainWithoutToken, (4, ), (16, ),
     {'patch_embed.proj.bias': 0, 'blocks.2.norm2.bias': 3, 'norms.2.weight': 3, 'head.fc.bias': 4}),
])


@TINY
def test_maps_are_as_described(kind, channels, strides, depths):
    model = kind()
    outs = model(torch.randn(1, 3, 32, 64))
    assert model.feature_info == tuple(zip(channels, strides))
    assert (model.out_channels, model.strides) == (channels, strides)
    assert [tuple(out.shape) for out in outs] == [(1, c, 32 // s, 64 // s) for c, s in zip(channels, strides)]


@TINY
def test_depths_count_blocks(kind, channels, strides, depths):
    model = kind()
    number = max(depths.values()) + 1
    for name, depth in depths.items():
        assert model.get_layer_depth(name if name[:4] == 'head' else f'backbone.{name}', 'backbone.') == (depth, number)
    assert {model.get_layer_depth(name)[0] for name, _ in model.named_parameters()} == set(range(number - 1))
    with pytest.raises(ValueError, match=rf'extra belongs to no part in the layer_order\(\) of {kind.__name__}'):
        model.get_layer_depth('extra')


@TINY
def test_blocks_are_units_of_fsdp(kind, channels, strides, depths):
    model = kind()
    assert wrap_blocks(model, recurse=True, nonwrapped_numel=0)
    units = [module for module in model.modules() if wrap_blocks(module, recurse=False, nonwrapped_numel=0)]
    assert len(units) == max(depths.values()) - 1


@pytest.mark.parametrize(('kind', 'frozen_stages', 'trained'), [
    (ThreeStages, 0, 'stages.0.blocks.0.norm2.weight'), (ThreeStages, 2, 'stages.2.cls_token'), (ThreeStages, 3, None),
    (FourEqualMaps, 0, 'stages.0.patch_embed.proj.weight'), (FourEqualMaps, 1, 'stages.1.patch_embed.proj.weight'),
    (Plain, 0, 'blocks.0.norm2.weight'), (Plain, 2, 'blocks.2.norm2.weight'), (Plain, 3, None)])
def test_freezing_goes_from_the_stem_on(kind, frozen_stages, trained):
    model = kind(frozen_stages=frozen_stages).train()
    assert next((name for name, p in model.named_parameters() if p.requires_grad), None) == trained
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [name for name, _ in model.named_parameters()][:len(frozen)]
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        assert not name or not own or module.training == own[0].requires_grad, name
    with pytest.raises(ValueError, match=r'from -1 \(none\) to \d \(all\), got 5'):
        kind(frozen_stages=5)


@TINY
def test_checkpoints_must_hold_what_lies_outside_of_stages(kind, channels, strides, depths, tmp_path):
    path = str(tmp_path / 'weights.pth')
    whole = kind()
    weights = {name: torch.randn_like(tensor) for name, tensor in whole.state_dict().items()}
    torch.save({**weights, 'head.fc.weight': torch.zeros(1)}, path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    for out_indices in (whole.out_indices, (0, )):
        model = kind(out_indices=out_indices, init_cfg=init_cfg)
        model.init_weights()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items()
                   if not name.startswith('norms.0'))  # of another map than those of the checkpoint
    outside = next(name for name in depths if name in weights)
    torch.save({name: tensor for name, tensor in weights.items() if name != outside}, path)
    with pytest.raises(CheckpointError, match=f'1 missing .{outside}'):
        kind(init_cfg=init_cfg).init_weights()
    surplus = next(name for name in weights if 'blocks' in name).replace('blocks.0', 'blocks.7')
    torch.save({**weights, surplus: torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=f'1 not used .{surplus}'):
        kind(init_cfg=init_cfg).init_weights()


def test_norms_of_its_own_maps_may_be_missing(tmp_path):
    """But not the last one, which classifiers have."""
    path = tmp_path / 'weights.pth'
    weights = Plain().state_dict()
    torch.save(weights, path)
    model = Plain(out_indices=(0, 2), init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    assert torch.equal(model.blocks[2].norm2.weight, weights['blocks.2.norm2.weight'])
    del weights['norms.2.weight']
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match='1 missing .norms.2.weight'):
        Plain(out_indices=(0, 2), init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


def test_class_tokens_are_read_where_there_is_one():
    token, = Plain(out_type='cls_token')(torch.randn(2, 3, 32, 64))
    assert token.shape == (2, 4)
    assert 'cls_token' in Plain().state_dict() and 'cls_token' not in PlainWithoutToken().state_dict()
    with pytest.raises(ValueError, match="out_type of PlainWithoutToken must be featmap, got 'cls_token'"):
        PlainWithoutToken(out_type='cls_token')


@pytest.mark.parametrize(('kind', 'last'), [(ThreeStages, 2), (FourEqualMaps, 3), (Plain, 2)])
def test_minus_one_names_the_last_map(kind, last):
    assert kind(out_indices=-1).out_indices == (last, )


class Parallel(Plain):
    """As MPViT, two paths of blocks side by side."""

    def layer_order(self):
        return [Layer(('cls_token', 'patch_embed'), 0), Layer(('blocks.0', 'blocks.1'), 1, is_block=True),
                Layer('blocks.2', 2, is_block=True), Layer(('norms.0', 'norms.1', 'norms.2'), 2, is_added=True)]


def test_blocks_side_by_side_have_one_depth():
    model = Parallel()
    assert [model.get_layer_depth(name)[0] for name in ('cls_token', 'blocks.0.bias', 'blocks.1.bias', 'blocks.2.bias')] == [
        0, 1, 1, 2]
    assert model.find_blocks() == list(model.blocks)
    kept = {name: tensor for name, tensor in model.state_dict().items() if 'norms' not in name}
    assert match(model, kept).added == ['norms.2.weight', 'norms.2.bias'] and match(model, kept).complete


def test_rates_may_be_of_the_paper():
    rates = [[block.drop_path.drop_prob for block in stage.blocks] for stage in ThreeStages().stages]
    assert rates == [[0], [0, 0], [0, 0.5]]


def test_keys_of_an_arch_beside_its_name():
    model = SimViT('micro', depths=(1, 1, 1, 1), out_indices=(1, ))
    assert model.arch == {**SimViT.arch_zoo['micro'], 'depths': (1, 1, 1, 1)} and SimViT.arch_zoo['micro']['depths'][0] == 2
    assert [len(stage.blocks) for stage in model.stages] == [1, 1]
    with pytest.raises(TypeError, match=r"^SimViT.__init__\(\) got an unexpected keyword argument 'depth'; beside its own "
                                        'arguments it takes the keys of an arch: depths, embed_dims, mlp_ratios, num_heads$'):
        SimViT('micro', depth=3)
    with pytest.raises(ValueError, match=r"arch\['depths'\] of SimViT must be 4 positive whole numbers.* got \(1, 2\)"):
        SimViT('micro', depths=(1, 2))
