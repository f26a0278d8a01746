class DataError(ValueError):
    """Data that cannot be trained or evaluated on; the message names the file and what to do."""
