_base_ = './resformer_mini_shapes.py'
# The same images and steps, each image at three resolutions.
custom_imports = dict(imports=['mmsimvit', 'mmsimvit.classifiers'])
model = dict(
    type='MultiResolutionClassifier', data_preprocessor=dict(type='MultiResolutionPreprocessor', sizes=(128, 96, 64)))
