_base_ = './simvit_micro_shapes.py'
# The same images, each at three resolutions, the largest of which is that of simvit_micro_shapes.py. docs/training.md compares
# them on images of other sizes.
custom_imports = dict(imports=['mmsimvit', 'mmsimvit.classifiers'])
model = dict(
    type='MultiResolutionClassifier', data_preprocessor=dict(type='MultiResolutionPreprocessor', sizes=(64, 48, 32)))
