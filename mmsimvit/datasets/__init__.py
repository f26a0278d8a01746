"""The generated data set, and checks of the data that users bring."""
from .checked_pipeline import check_pipelines
from .checks import check_data, is_first_process
from .errors import DataError
from .shapes import CLASSES, generate_shapes

__all__ = ['CLASSES', 'DataError', 'check_data', 'check_pipelines', 'generate_shapes', 'is_first_process']
