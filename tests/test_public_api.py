"""What other people's code and configs may use does not change unnoticed."""
from difflib import unified_diff

import pytest

from tests.write_public_api import FILE, public_api


def test_public_api_is_the_stored_one():
    stored, found = (text.splitlines() for text in (FILE.read_text(encoding='utf-8'), public_api()))
    diff = '\n'.join(unified_diff(stored, found, 'tests/public_api.txt', 'the source', lineterm=''))
    if diff:
        pytest.fail(f'the public API differs; if that is meant, python -m tests.write_public_api stores it:\n{diff}',
                    pytrace=False)
