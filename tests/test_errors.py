"""Every error that ends a command has the exit code of its kind."""

import os

import pytest

from ctmr.errors import CtmrError, EnvironmentFault, GateFailed, InputError


@pytest.mark.parametrize(("kind", "code"), [(GateFailed, 1), (InputError, 2), (EnvironmentFault, 3)])
def test_each_kind_has_its_documented_exit_code(kind, code):
    assert kind("why").exit_code == code


@pytest.mark.parametrize("kind", [GateFailed, InputError, EnvironmentFault])
def test_one_except_clause_catches_every_kind_and_keeps_the_sentence(kind):
    with pytest.raises(CtmrError, match="the sentence"):
        raise kind("the sentence")


def test_bad_input_is_not_taken_for_a_fault_of_the_machine():
    assert not issubclass(InputError, EnvironmentFault)
    assert not issubclass(EnvironmentFault, InputError)
    assert not issubclass(GateFailed, InputError)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größer → 5", "größer → 5"),
        (os.fsdecode(b"caf\xe9/a.dcm"), "caf\\xe9/a.dcm"),
        ("a\ud800b", "a\\ud800b"),
        ("\x1b[2Jgone\x07\x9b1m", "\\x1b[2Jgone\\x07\\x9b1m"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_a_name_that_is_not_utf_8_or_that_terminals_obey_can_be_printed(text, shown):
    assert str(InputError(text)) == shown
    str(InputError(text)).encode()
