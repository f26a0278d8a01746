"""What the tutorials show of a training's log, and of pictures."""
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from PIL import Image

from mmsimvit.analysis.notebook import brief_log, show


def test_a_brief_log_has_progress_loss_and_scores_alone(capsys):
    with brief_log():
        logger = MMLogger('test_notebook', logger_name='test_notebook')
        logger.info('Config:\nlr = 0.1')
        logger.info('Epoch(train)  [2][20/38]  lr: 1e-3  eta: 0:00:10  loss: 0.4321  loss_cls: 0.2  grad_norm: 3.0')
        logger.info('Epoch(val) [2][10/10]    coco/bbox_mAP: 0.2560  coco/bbox_mAP_50: 0.5  coco/segm_mAP: 0.2010  time: 0.1')
        print('predictions on 3 of 3 images are in out')
    print('after')
    assert capsys.readouterr().out.splitlines() == [
        'Epoch(train)  [2][20/38]  loss: 0.4321', 'Epoch(val) [2][10/10]  bbox_mAP: 0.2560  segm_mAP: 0.2010',
        'predictions on 3 of 3 images are in out', 'after']


def test_a_picture_is_written_and_named(tmp_path, capsys):
    show(Figure(figsize=(2, 1)), tmp_path / 'a.png')
    assert Image.open(tmp_path / 'a.png').size == (200, 100)
    show(tmp_path / 'b.png')
    assert capsys.readouterr().out == f'picture: {tmp_path / "a.png"}\npicture: {tmp_path / "b.png"}\n'
