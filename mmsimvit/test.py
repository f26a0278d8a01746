"""``python -m mmsimvit.test``, as the pages have it."""
from .cli.test import main

if __name__ == '__main__':
    main()
