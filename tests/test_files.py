import pytest

from mmsimvit.files import atomic_write


def test_a_file_that_was_not_finished_is_not_there(tmp_path):
    path = tmp_path / 'new/a.json'

    def fail(unfinished):
        unfinished.write_text('half')
        raise OSError('disk broken')

    atomic_write(path, lambda unfinished: unfinished.write_text('whole'))
    with pytest.raises(OSError, match='disk broken'):
        atomic_write(path, fail)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [('a.json', 'whole')]
