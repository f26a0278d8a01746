"""The report of made-up records: what it says, that it needs nothing else, and that a browser shows it."""
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmsimvit.compare.fit import Fit
from mmsimvit.compare.metrics import segmentation_record
from mmsimvit.compare.plan import Candidate, Job, Protocol, write_training
from mmsimvit.compare.report import COLOURS, _classes, pareto_front, write_report
from mmsimvit.compare.results import best_rates, collect, write_results
from mmsimvit.errors import DataError

BROWSER = shutil.which('chromium') or shutil.which('google-chrome') or shutil.which('chromium-browser')
RIGHT = {'good': 0.9, 'same': 0.9, 'worse': 0.6}  # the share of pixels
INFO = dict(classes=('road', 'sky', 'car'), palette=[(128, 64, 128), (70, 130, 180), (0, 0, 142)])


def train(job, images):
    """What a training leaves behind."""
    random = np.random.default_rng([job.seed, len(job.candidate.label)])
    (job.folder / 'predictions').mkdir(parents=True)
    records = []
    for number, (path, labels) in enumerate(images):
        wrong = random.random(labels.shape) > RIGHT[job.candidate.label] - 0.01 * job.seed
        predicted = np.where(wrong, (labels + 1) % 3, labels)
        records.append({**segmentation_record(predicted, labels, np.full(labels.shape, 0.8), 3), 'image': np.array(str(path))})
        Image.fromarray(predicted.astype(np.uint8)).save(job.folder / f'predictions/{number:06d}.png')
        Image.fromarray(labels.astype(np.uint8)).save(job.folder / f'predictions/{number:06d}.labels.png')
    np.savez(job.folder / 'records.npz', **{name: np.stack([one[name] for one in records]) for name in records[0]})
    score = 100 * RIGHT[job.candidate.label] * job.rate * 500
    curve = [dict(iteration=10 * place, seconds=2. * place, scores=dict(mIoU=score * place / 2)) for place in (1, 2)]
    (job.folder / 'done.json').write_text(json.dumps(dict(
        seconds=4., iterations=20, images_per_second=40., peak_bytes=None, curve=curve)))


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """Results, and the folder of the report."""
    out = tmp_path_factory.mktemp('compared')
    random, images = np.random.default_rng(0), []
    for number in range(12):
        labels = random.integers(0, 3, (4, 6)).repeat(8, 0).repeat(8, 1)
        Image.fromarray(np.array(INFO['palette'], np.uint8)[labels]).save(out / f'{number}.png')
        images.append((out / f'{number}.png', labels))
    fit = Fit(dict(type='EncoderDecoder'), None, [], {}, {})
    candidates = [Candidate(label, f'{label}:word', label, fit) for label in RIGHT]
    candidates.append(Candidate('bad', 'Bad:<b>', 'bad', None, "Bad has no arch '<b>'"))
    protocol = Protocol(rates=(1e-3, 2e-3), head='semfpn')
    searches = [Job(one, out / 'runs' / one.label / f'rate_{rate}', 20, rate, 0, searches=True)
                for one in candidates[:3] for rate in protocol.rates]
    trainings = [Job(one, out / 'runs' / one.label / f'seed_{seed}', 20, 2e-3, seed)
                 for seed in range(3) for one in candidates[:3]]
    for job in (*searches, *trainings[:-1]):  # the last is not done yet
        train(job, images)
    costs = dict(parameters=3_000_000, backbone_parameters=2_000_000, macs=5e9, backbone_macs=3e9, saved_bytes=2**25,
                 peak_bytes=2**26, peak_bytes_inference=2**22)
    measured = dict(environment=dict(device='CPU', threads=1, date='2026-01-01'), size=[32, 48], backbones={
        label: dict(costs, backbone=[0.01, 0.012], model=[0.02 * number, 0.022 * number], training=[0.1, 0.11])
        for number, label in enumerate(RIGHT, 1)})
    results = collect(protocol, candidates, searches, trainings, measured, INFO, 'python -m mmsimvit compare good:word')
    write_results(results, out)
    write_report(results, out)
    return results, out


def test_numbers_in_json_and_csv(compared):
    results, out = compared
    assert json.loads((out / 'results.json').read_text())['pairs'] == results['pairs']
    rows = (out / 'results.csv').read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith('backbone,seeds,learning_rate,failed,mIoU,mIoU low,mIoU high')
    assert rows[1].startswith('good,3,0.002,,') and "no arch '<b>'" in rows[4]
    assert results['unfinished'] == ['worse, rate 0.002, seed 2']


def test_a_difference_is_found_and_the_same_is_not(compared):
    """A planted one; and two backbones of the same quality, whose trainings differ by chance."""
    results, _ = compared
    pairs = {(pair['one'], pair['other']): pair['scores']['mIoU'] for pair in results['pairs']}
    assert pairs['good', 'worse']['low'] > 20 and pairs['good', 'worse']['probability'] == 1
    assert pairs['good', 'same']['low'] < 0 < pairs['good', 'same']['high']
    for one, other in (('good', 'worse'), ('good', 'same')):
        there, back = pairs[one, other], pairs[other, one]
        assert [back['value'], back['low'], back['high']] == [-there['value'], -there['high'], -there['low']]
        assert there['probability'] + back['probability'] == pytest.approx(1)


def test_the_best_rate_is_taken(compared):
    results, out = compared
    fit = Fit({}, None, [], {}, {})
    one = Candidate('good', '', 'good', fit)
    jobs = [Job(one, out / f'runs/good/rate_{rate}', 20, rate, 0, searches=True) for rate in (1e-3, 2e-3)]
    assert best_rates(jobs, Protocol(rates=(1e-3, 2e-3)), [one]) == {'good': 2e-3}
    assert best_rates(jobs[:1], Protocol(rates=(1e-3, 2e-3)), [one]) == {'good': 1e-3}
    assert best_rates([], Protocol(rates=(5e-4, )), [one]) == {'good': 5e-4}
    assert results['backbones'][0]['at_end_of_grid']


def test_a_rate_is_that_of_a_whole_search_and_stays(compared, tmp_path):
    """None before all rates are tried; what a failed one gives later does not change that of trainings."""
    _, out = compared
    shutil.copytree(out / 'runs/good', tmp_path / 'good')
    (tmp_path / 'good/rate_0.002/done.json').rename(tmp_path / 'later')
    one, protocol = Candidate('good', '', 'good', Fit({}, None, [], {}, {})), Protocol(rates=(1e-3, 2e-3))
    jobs = [Job(one, tmp_path / f'good/rate_{rate}', 20, rate, 0, searches=True) for rate in protocol.rates]
    assert best_rates(jobs, protocol, [one]) == {}
    (tmp_path / 'good/rate_0.002/failed.txt').write_text('out of memory')
    assert best_rates(jobs, protocol, [one]) == {'good': 1e-3}
    write_training(Job(one, tmp_path / 'good/seed_7', 20, 1e-3, 7), Config(), protocol)
    (tmp_path / 'later').rename(tmp_path / 'good/rate_0.002/done.json')
    assert best_rates(jobs, protocol, [one]) == {'good': 1e-3}


def test_images_that_were_changed_in_between_are_refused(compared, tmp_path):
    """Or scores of different images would be paired."""
    _, out = compared
    shutil.copytree(out / 'runs/good', tmp_path / 'good')
    with np.load(tmp_path / 'good/seed_1/records.npz') as content:
        records = dict(content)
    records['image'] = records['image'][::-1]
    np.savez(tmp_path / 'good/seed_1/records.npz', **records)
    one = Candidate('good', '', 'good', Fit({}, None, [], {}, {}))
    jobs = [Job(one, tmp_path / f'good/seed_{seed}', 20, 2e-3, seed) for seed in (0, 1)]
    with pytest.raises(DataError, match='good/seed_1 was validated on other images than .*good/seed_0'):
        collect(Protocol(rates=(2e-3, )), [one], [], jobs, {}, INFO, '')


def test_a_classifier_whose_last_class_has_no_validation_image(tmp_path):
    records = dict(right=np.array([True, False]), label=np.array([0, 1]), cross_entropy=np.ones(2),
                   confidence=np.ones((2, 3, 15)), image=np.array(['a', 'b']))
    np.savez(tmp_path / 'records.npz', **records)
    curve = [dict(iteration=20, seconds=4., scores=dict(accuracy=50.))]
    (tmp_path / 'done.json').write_text(json.dumps(dict(
        seconds=4., iterations=20, images_per_second=40., peak_bytes=None, curve=curve)))
    one = Candidate('$a_b$', '', 'one', Fit({}, None, [], {}, {}))
    protocol = Protocol(task='classification', data='.', rates=(2e-3, ))
    results = collect(protocol, [one], [], [Job(one, tmp_path, 20, 2e-3, 0)], {}, dict(classes=('x', 'y', 'z')), '')
    assert results['backbones'][0]['classes'] == [[100., 0., None]]
    write_report(results, tmp_path)
    text = (tmp_path / 'report.html').read_text()
    assert '<td data-value="z">z</td><td data-value="">' in text and '$a_b$' in text
    assert f'1 backbones, classification on {Path.cwd().name}' in text


def test_a_goal_is_reached_at_some_time(compared):
    results, _ = compared
    assert results['goal'] == min(one['scores']['mIoU']['value'] for one in results['backbones'] if 'scores' in one)
    assert results['backbones'][0]['seconds_to_goal'] == [2., 2., 2.]


def test_the_front_of_pareto():
    assert pareto_front(dict(a=(1, 10), b=(2, 9), c=(3, 12), d=(3, 11), e=(4, 12))) == ['a', 'c']


def test_the_report_needs_nothing_else(compared):
    _, out = compared
    text = (out / 'report.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and '@import' not in text and 'url(http' not in text
    assert "Bad has no arch &#x27;&lt;b&gt;" in text
    assert 'python -m mmsimvit compare good:word' in text
    assert text.count('<svg') == 5 and all(colour.lower() in text for colour in map(str.lower, COLOURS[:3]))
    assert 'Unfinished: 1 trainings' in text


@pytest.mark.skipif(BROWSER is None, reason='no chromium')
@pytest.mark.full
def test_a_browser_shows_and_sorts_it(compared, tmp_path):
    """Without an error or a request, no wider than the window, and sorted by a click."""
    _, out = compared
    probe = '''<script>
    const told = {errors: [], requests: performance.getEntriesByType('resource').map(one => one.name).filter(
      name => !name.startsWith('data:')), images: [...document.images].every(one => one.complete && one.naturalWidth > 0)};
    const table = document.querySelector('table.sortable'), buttons = table.querySelectorAll('th button');
    const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
    buttons[1].click(); told.descending = names();
    buttons[1].click(); told.ascending = names();
    told.sort = table.tHead.rows[0].cells[1].getAttribute('aria-sort');
    told.width = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    document.title = JSON.stringify(told);
    </script></body>'''
    page = tmp_path / 'page.html'
    page.write_text((out / 'report.html').read_text().replace('</body>', probe))
    for width in (1280, 500):  # headless Chromium has no window below 500
        dom = subprocess.run([BROWSER, '--headless', '--no-sandbox', '--disable-gpu', f'--window-size={width},900',
                              '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120).stdout
        told = json.loads(re.search(r'<title>(.*?)</title>', dom)[1].replace('&quot;', '"'))
        assert told['requests'] == [] and told['images'] and told['width'] <= 0
        assert told['descending'][2:] == ['worse', 'bad'] and told['ascending'][0] == 'worse'
        assert told['ascending'][3] == 'bad' and told['sort'] == 'ascending'  # what has no number stays last


def test_of_equal_classes_none_is_the_best():
    rows = [dict(label=label, classes=[[0., score]]) for label, score in (('one', 1.), ('other', 2.))]
    text = _classes(dict(classes=['tree', 'car'], protocol=dict(task='segmentation'), backbones=rows))
    assert re.findall(r"class='best'>([\d.]+)", text) == ['2.0']
