# %% [markdown]
# # Train on your own data
# From a folder of images with annotations in COCO's format to a trained Mask R-CNN, in minutes on one core of a CPU.
# The images are generated here, so that this page runs by itself; where yours differ, the text says what to change.
#
# This is a Python file with cells: it opens as a notebook in VS Code and in Jupyter (with jupytext), and runs as it is
# with `python docs/tutorials/your_own_data.py`. All that it writes is in `work_dirs/tutorials/your_own_data`, below the
# current folder.

# %%
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from pycocotools.coco import COCO

from mmsimvit import find_config, generate_shapes
from mmsimvit.analysis.notebook import brief_log, show
from mmsimvit.analysis.pictures import draw_curves, draw_detections
from mmsimvit.engine import find_whole_checkpoint
from mmsimvit.infer import main as infer
from mmsimvit.test import main as test
from mmsimvit.train import main as train

work = Path('work_dirs/tutorials/your_own_data')
shutil.rmtree(work, ignore_errors=True)  # what an earlier run of this page left
warnings.filterwarnings('ignore', module='mm(cv|engine|det|seg)|rich')  # of what is deprecated in them, and the like
work.mkdir(parents=True)

# %% [markdown]
# ## The data
# What is needed: folders of images for training and for validation, and one annotation file for each. The config says
# what they are called; these are the names that `maskrcnn_simvit_micro_custom.py` expects:
#
# ```
# own/
#   train/000000.png ...
#   val/000000.png ...
#   annotations/instances_train.json
#   annotations/instances_val.json
# ```
#
# Many labelling tools export this format under the name of COCO. Let the validation images be of other scenes than those
# for training, not neighbouring frames of one video, or the scores will be too good.

# %%
generated = generate_shapes(work / 'generated', num_training=300, num_validation=40, image_size=96)
data = work / 'own'
(data / 'annotations').mkdir(parents=True)
for split, name in (('training', 'train'), ('validation', 'val')):
    shutil.copytree(generated / 'images' / split, data / name)
    shutil.copy(generated / f'annotations/instances_{split}.json', data / f'annotations/instances_{name}.json')

annotations = json.loads((data / 'annotations/instances_train.json').read_text())
for key in ('images', 'annotations', 'categories'):
    print(f'{len(annotations[key])} {key}, the first: {str(annotations[key][0])[:250]}')

# %% [markdown]
# That is the whole format: images with sizes, categories with names, and annotations that say which image, which
# category, which box (x and y of the upper left corner, width and height, in pixels) and which mask. A mask is either
# run lengths as here (`counts`), or polygons `[[x1, y1, x2, y2, ...], ...]`, as most tools write them. Without masks,
# take `retinanet_simvit_micro_custom.py`, which needs boxes alone.
#
# Always look at the annotations before you train. That shows in seconds what no check can know: boxes that are shifted,
# categories that are swapped, objects that nobody labelled.

# %%
with brief_log():
    coco = COCO(data / 'annotations/instances_train.json')
categories = {category['id']: category['name'] for category in coco.dataset['categories']}

figure = Figure(figsize=(10, 5.2), layout='constrained')
for axes, image_id in zip(figure.subplots(2, 4).flat, coco.getImgIds()):
    image = np.array(Image.open(data / 'train' / coco.imgs[image_id]['file_name']))
    for number, annotation in enumerate(coco.imgToAnns[image_id]):
        x, y, width, height = annotation['bbox']
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color=f'C{number}', linewidth=2))
        axes.text(x + 1, y + 1, categories[annotation['category_id']], va='top', fontsize=8, color='white',
                  bbox=dict(facecolor=f'C{number}', edgecolor='none', pad=1))
        axes.contour(coco.annToMask(annotation), levels=[0.5], colors='white', linewidths=1)
    axes.imshow(image)
    axes.axis('off')
show(figure, work / 'data.png')

# %% [markdown]
# ## The config
# An OpenMMLab config is a Python file of assignments: model, data, schedule. One with a `_base_` takes all of that file
# and states only what differs. `find_config` gives the path of a config of mmsimvit by its name, wherever it is
# installed.
#
# By hand one would copy `maskrcnn_simvit_micro_custom.py` and edit its first lines; here a child config does the same.
# One mistake is in it.

# %%
config = work / 'mine.py'
_ = config.write_text(f'''
_base_ = {find_config('maskrcnn_simvit_micro_custom')!r}
data_root = {data.as_posix()!r}
classes = ('disc', 'square', 'triangle', 'star', 'cross', 'ring')  # in the order of the annotation files
image_scale = (96, 96)  # each image is resized to fit into this

dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = image_scale
train_pipeline[3].update(prob=0.75, direction=['horizontal', 'vertical', 'diagonal'])  # for things without an upright
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(ann_file=f'{{data_root}}/annotations/instances_val.json')

model = dict(
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))),
    # Regions that are proposed and learnt from: small images have few objects, and fewer regions are faster.
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=100), rcnn=dict(sampler=dict(num=32, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)))
train_cfg = dict(max_epochs=5, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=1e-3))  # from random weights; lower with pretrained ones
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=5))
randomness = dict(seed=0)
''')

# %% [markdown]
# Workers are processes that load images beside the training. In a notebook, and for tiny images, it is simplest to have
# none; on a real machine take `num_workers=0, persistent_workers=False` out of both lines.
#
# ## A mistake
# Before a training begins, mmsimvit looks at the data: are folders and images there, does every class have a category,
# do boxes lie in their images? What is wrong ends the command with one line (`SystemExit` in Python). The config says
# `disc`, for what the annotations call `circle`:

# %%
try:
    train([str(config), '--work-dir', str(work / 'training')])
except SystemExit as error:
    print(error)

# %%
_ = config.write_text(config.read_text().replace("'disc'", "'circle'"))

# %% [markdown]
# ## Train
# `train` takes the words of the command line; in a shell this is
#
# ```shell
# python -m mmsimvit.train work_dirs/tutorials/your_own_data/mine.py --work-dir work_dirs/tutorials/your_own_data/training
# ```
#
# The weights are random at first. After every epoch the model is evaluated on the validation images: `bbox_mAP` is the
# average precision of the boxes, `segm_mAP` that of the masks, both from 0 to 1, averaged over classes and over how
# exactly a prediction must fit (COCO's rule).
#
# `brief_log` shows this of the hundreds of lines that MMEngine logs; all of them are in a `.log` file in the work dir.

# %%
with brief_log():
    train([str(config), '--work-dir', str(work / 'training')])

# %% [markdown]
# ## Evaluate
# The checkpoint is evaluated by itself, as one would on a test set. `test` gives all scores as a dict.

# %%
checkpoint = find_whole_checkpoint(work / 'training')
with brief_log():
    scores = test([str(config), str(checkpoint), '--work-dir', str(work / 'test')])
print(f'box AP {scores["coco/bbox_mAP"]:.3f}, mask AP {scores["coco/segm_mAP"]:.3f}, from {checkpoint}')

# %% [markdown]
# The curves tell what to try next. If the scores still rise at the end, train longer. If the loss falls and the scores do
# not rise, the model learns its images by heart: it needs more of them, or more augmentation. (`mAP_50` takes a
# prediction as right if it overlaps with the truth by half; `mAP` asks for more.)

# %%
draw_curves(work / 'training', work / 'curves.png')
show(work / 'curves.png')

# %% [markdown]
# Numbers hide what kind of errors there are. On the left of each pair is the annotation, on the right what the model
# finds with a score of at least 0.3, on validation images.

# %%
with brief_log():
    draw_detections(config, checkpoint, work / 'predictions.png', num_images=6, height=240, score_thr=0.3)
show(work / 'predictions.png')

# %% [markdown]
# ## Predict on a new image
# `infer` takes an image or a folder and needs no annotations. It writes a drawing, and the predictions as JSON.

# %%
new = generate_shapes(work / 'new', num_training=1, num_validation=1, image_size=96, seed=1) / 'images/training/000000.png'
with brief_log():
    infer([str(new), str(config), str(checkpoint), '--out-dir', str(work / 'predictions')])
for instance in json.loads((work / 'predictions/000000.png.json').read_text())['instances']:
    print(f'{instance["class"]:10} score {instance["score"]:.2f}  box {[round(x) for x in instance["box"]]}')
show(work / 'predictions/000000.png.drawn.jpg')

# %% [markdown]
# ## How to get more
# The model has learnt, but this was a training of a few minutes on few images, and the scores say so: a useful detector
# needs more. What to turn:
#
# - *Pretrained weights.* Convert the published ones once with `tools/convert_checkpoint.py`, and name the file in the
#   config: `init_cfg=dict(type='Pretrained', checkpoint=...)` of the backbone. With them, take a lower rate.
# - *More steps, and more images.* `maskrcnn_simvit_micro_shapes.py` is the same kind of model on a thousand of these
#   images; `make demo` trains it, and the README shows what it reaches.
# - *Larger images*, if your objects are small: `image_scale`, and anchors to fit (`anchor_generator` in the config).
# - *A larger model*: `maskrcnn_simvit_t_coco.py` and its sisters, on a GPU.
