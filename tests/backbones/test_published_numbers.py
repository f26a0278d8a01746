"""Every backbone gives, through the converter, its published code's numbers. A new backbone adds its golden file."""
import pytest
import torch
from mmengine.registry import MODELS

from mmsimvit.checkpoints import SYSTEMS, convert_state_dict, find_arch
from tests import golden

GOLDEN = {system: golden.load(system)['variants'] for system in SYSTEMS}
# Golden variants that are no published names: a named variant, changed.
CHANGED = {
    'lit': {
        's_seg': ('s', dict(bias_grids=(32, 16))),
        's_cls224': ('s', dict(bias_grids=(14, 7), map_norms=(3, ))),
    },
    'gcvit': {
        'xxtiny_w7': ('xxtiny', dict(window_sizes=(7, 7, 14, 7))),
        'small_w7': ('small', dict(window_sizes=(7, 7, 14, 7))),
    },
    'dwnet': {f'{arch}_d1': (arch, dict(depths=(1, 1, 1, 1)))
              for arch in ('dynamic_t', 'dynamic_b', 'idynamic_t', 'idynamic_b')},
}
# Published parameters that no map depends on: LIT-Ti's position of a class token, the final norm of I-D-DW's classifier.
USELESS = {('lit', 'ti'): 512, ('dwnet', 'idynamic_t'): 2 * 768, ('dwnet', 'idynamic_b'): 2 * 1024,
           ('dwnet', 'idynamic_t_d1'): 2 * 768, ('dwnet', 'idynamic_b_d1'): 2 * 1024}
# Dynamic kernels multiply features, so that with these weights they grow from block to block. Where they have grown to this,
# squares in the next stage's layer norm are beyond float32.
TOO_LARGE = 1e17

all_variants = pytest.mark.parametrize(('system', 'variant'),
                                       [(system, variant) for system in GOLDEN for variant in GOLDEN[system]])


def arch_of(system, variant):
    name, changes = CHANGED.get(system, {}).get(variant, (variant, None))
    return {**MODELS.get(SYSTEMS[system].backbone).arch_zoo[name], **changes} if changes else name


@all_variants
def test_gives_the_published_numbers(system, variant):
    published = GOLDEN[system][variant]
    if not published['cases']:
        pytest.skip('with the weights of the golden files, the published code overflows in float64')
    model = MODELS.get(SYSTEMS[system].backbone)(arch_of(system, variant)).double().eval()
    model.load_state_dict(convert_state_dict(system, golden.state_dict(published)))
    # In float32, the larger would show nothing that smaller ones do not.
    dtypes = {torch.float64: 1e-9} if published['parameters'] > 3e7 else {torch.float64: 1e-9, torch.float32: 2e-4}
    for dtype, tolerance in dtypes.items():
        model.to(dtype)
        for case in published['cases']:
            with torch.no_grad():
                outputs = model(golden.image(case['input']).to(dtype))
            previous = 0
            for output, expected in zip(outputs, case['outputs'], strict=True):
                if dtype == torch.float64 or previous < TOO_LARGE:
                    assert golden.error(output, expected) < tolerance, (dtype, case['input'], expected['shape'])
                previous = expected['std']


@all_variants
def test_parameter_counts_are_the_published(system, variant):
    with torch.device('meta'):
        model = MODELS.get(SYSTEMS[system].backbone)(arch_of(system, variant))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == GOLDEN[system][variant]['parameters'] - USELESS.get((system, variant), 0)


@pytest.mark.parametrize(('system', 'arch'), [(system, arch) for system in GOLDEN for arch in GOLDEN[system]
                                              if arch not in CHANGED.get(system, {})])
def test_finds_the_variant(system, arch):
    with torch.device('meta'):
        state_dict = {name: torch.empty(shape) for name, shape in GOLDEN[system][arch]['state'].items()}
    found, fit = find_arch(system, convert_state_dict(system, state_dict))
    assert found == arch
    assert fit.complete and not fit.added
