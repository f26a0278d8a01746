"""What is inside of wrapped data sets."""
from typing import Any


def unwrap_dataset(dataset: Any, whole: str | None = None) -> list[Any]:
    """The data sets inside of wrappers such as ``RepeatDataset`` and ``ConcatDataset``, in their order.

    Args:
        dataset: built, or its config.
        whole: the type of a wrapper whose config is given as it is.
    """
    def get(name: str) -> Any:
        return dataset.get(name) if isinstance(dataset, dict) else getattr(dataset, name, None)

    inner = get('datasets') if get('dataset') is None else get('dataset')
    if inner is None or (whole and get('type') == whole):
        return [dataset]
    return [leaf for part in (inner if isinstance(inner, (list, tuple)) else [inner]) for leaf in unwrap_dataset(part, whole)]
