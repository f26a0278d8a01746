"""``python -m mmsimvit.doctor``, the older name of ``python -m mmsimvit doctor``."""
from .cli.doctor import main

if __name__ == '__main__':
    main()
