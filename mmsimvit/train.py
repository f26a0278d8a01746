"""``python -m mmsimvit.train``, as the pages have it."""
from .cli.train import main

if __name__ == '__main__':
    main()
