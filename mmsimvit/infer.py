"""``python -m mmsimvit.infer``, as the pages have it."""
from .cli.infer import main

if __name__ == '__main__':
    main()
