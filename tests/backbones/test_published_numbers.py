"""Every backbone gives, through the converter, its published code's numbers. A new backbone adds its golden file."""
import pytest
import torch

from mmsimvit.weights import convert_state_dict, find_arch
from tests import golden
from tests.backbones.table import GOLDEN, arch_of

LARGE = 3e7  # parameters; what this many take is not for every change
# Dynamic kernels multiply features, so that with these weights they grow from block to block. Where they have grown to this,
# squares in the next stage's layer norm are beyond float32.
TOO_LARGE = 1e17

VARIANTS = [(system, variant) for system, known in GOLDEN.items() for variant in known['variants']]
all_variants = pytest.mark.parametrize(('system', 'variant'), VARIANTS)


@pytest.mark.parametrize(('system', 'variant'), [
    pytest.param(*names, marks=pytest.mark.full) if GOLDEN[names[0]]['variants'][names[1]]['parameters'] > LARGE else names
    for names in VARIANTS])
def test_gives_the_published_numbers(system, variant):
    published = GOLDEN[system]['variants'][variant]
    if not published['cases']:
        pytest.skip('with the weights of the golden files, the published code overflows in float64')
    model = arch_of(system, variant)().double().eval()
    model.load_state_dict(convert_state_dict(system, golden.state_dict(published)))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 5e-4)):
        model.to(dtype)
        for case in published['cases']:
            with torch.no_grad():
                outputs = model(golden.image(case['input']).to(dtype))
            expected_maps = [case['outputs'][index] for index in GOLDEN[system].get('maps', range(len(case['outputs'])))]
            previous = 0
            for output, expected in zip(outputs, expected_maps, strict=True):
                if dtype == torch.float64 or previous < TOO_LARGE:
                    assert golden.error(output, expected) < tolerance, (dtype, case['input'], expected['shape'])
                previous = expected['std']


@all_variants
def test_parameter_counts_are_the_published(system, variant):
    with torch.device('meta'):
        model = arch_of(system, variant)()
    parameters = sum(p.numel() for p in model.parameters())
    known = GOLDEN[system]
    assert parameters == known['variants'][variant]['parameters'] - known.get('unused', {}).get(variant, 0)


@pytest.mark.parametrize(('system', 'arch'), [(system, variant) for system, variant in VARIANTS
                                              if variant not in GOLDEN[system].get('changes', {})])
def test_finds_the_variant(system, arch):
    with torch.device('meta'):
        published = {name: torch.empty(shape) for name, shape in GOLDEN[system]['variants'][arch]['state'].items()}
    found, fit = find_arch(system, convert_state_dict(system, published))
    # Variants that differ in windows alone have the same parameters, and the first of them is found.
    assert found == next(name for name, known in GOLDEN[system]['variants'].items()
                         if known['state'] == GOLDEN[system]['variants'][arch]['state'])
    assert fit.complete and not fit.added
