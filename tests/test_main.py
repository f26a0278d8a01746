"""``python -m mmsimvit COMMAND`` runs each command, as the scripts of a checkout do."""
import pytest

from mmsimvit import __main__ as by_name
from tests.conftest import ROOT, load_tool, run

DEVELOPMENT = {'gpu_bundle', 'model_zoo', 'setup_env'}  # what a user without a checkout has no use for
NO_SCRIPT = {'doctor'}  # which must run where a script, that imports mmsimvit first, finds no torch
INSTALLS = {'gpu_check'}  # whose script has work before mmsimvit can be imported


@pytest.mark.parametrize('name', sorted({*by_name.COMMANDS} - NO_SCRIPT - INSTALLS))
def test_a_command_is_a_script_too(name):
    assert load_tool(ROOT / f'tools/{name}.py').main.__module__ == f'mmsimvit.cli.{name}'


def test_every_tool_is_a_command():
    assert {path.stem for path in (ROOT / 'tools').glob('*.py')} == {*by_name.COMMANDS} - NO_SCRIPT | DEVELOPMENT


def test_a_command_gets_the_rest_of_the_command_line(tmp_path):
    out = run('-m', 'mmsimvit', 'get_flops', 'simvit_micro_imagenet', '--shape', '64', '96', cwd=tmp_path)
    assert '64 x 96' in out
    assert 'backbone' in out


def test_help_is_for_the_command_as_it_was_given(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['__main__.py', 'infer', '--help'])
    with pytest.raises(SystemExit):
        by_name.main()
    assert capsys.readouterr().out.startswith('usage: python -m mmsimvit infer ')


def test_an_unknown_command_names_those_that_are(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['__main__.py', 'flops'])
    with pytest.raises(SystemExit):
        by_name.main()
    assert "argument command: invalid choice: 'flops' (choose from" in capsys.readouterr().err
