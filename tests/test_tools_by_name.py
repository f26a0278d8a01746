"""``python -m mmsimvit TOOL`` runs each tool, of a checkout or of an installed wheel."""
import pytest

from mmsimvit import __main__ as by_name
from tests.conftest import ROOT, run

DEVELOPMENT = {'demo', 'model_zoo', 'setup_env'}  # what a user without a checkout has no use for


def test_every_tool_has_its_name():
    assert {path.stem for path in (ROOT / 'tools').glob('*.py')} == {*by_name.TOOLS} | DEVELOPMENT


def test_a_tool_gets_the_rest_of_the_command_line(tmp_path):
    out = run('-m', 'mmsimvit', 'get_flops', 'simvit_micro_imagenet', '--shape', '64', '96', cwd=tmp_path)
    assert '64 x 96' in out
    assert 'backbone' in out


def test_a_wheel_brings_the_tools(tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'mmsimvit/.mim/tools'
    folder.mkdir(parents=True)
    (folder / 'infer.py').write_text("import sys; print(__name__, sys.argv)")
    monkeypatch.setattr(by_name, 'FOLDERS', (folder, ROOT / 'tools'))
    monkeypatch.setattr('sys.argv', ['__main__.py', 'infer', 'images', '--help'])
    by_name.main()
    assert capsys.readouterr().out == f"__main__ ['{folder}/infer.py', 'images', '--help']\n"


def test_an_unknown_tool_names_those_that_are(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['__main__.py', 'flops'])
    with pytest.raises(SystemExit):
        by_name.main()
    assert "argument tool: invalid choice: 'flops' (choose from" in capsys.readouterr().err
