"""The generated data set, and checks of the data that users bring."""
from ..errors import DataError
from .checked_pipeline import check_pipelines
from .checks import check_data, is_first_process
from .shapes import CLASSES, generate_shapes

__all__ = ['CLASSES', 'DataError', 'check_data', 'check_pipelines', 'generate_shapes', 'is_first_process']
