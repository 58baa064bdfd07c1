"""Every error that ends a command has the exit code of its kind."""

import os

import pytest

from ctmr.errors import CtmrError, EnvironmentFault, GateFailed, InputError, without_secrets


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("MLflow at postgresql://ann:hush@db:5432/ml failed", "MLflow at postgresql://ann:***@db:5432/ml failed"),
        ("postgresql+psycopg2://ann:h@u/s:h@db/ml", "postgresql+psycopg2://ann:***@db/ml"),
        ("https://:hush@host/x", "https://:***@host/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("postgresql://ann@db/ml", "postgresql://ann@db/ml"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host/b?X-Amz-Signature=hush&sig=hush&x=1", "https://host/b?X-Amz-Signature=***&sig=***&x=1"),
        ("postgresql://db/ml?user=ann&password=hush&x=1", "postgresql://db/ml?user=ann&password=***&x=1"),
        ("s3://b/k?X-Amz-Security-Token=hush", "s3://b/k?X-Amz-Security-Token=***"),
        ("http://127.0.0.1:8888/x and sqlite:////a/b.db", "http://127.0.0.1:8888/x and sqlite:////a/b.db"),
        ("two: a://b:c@d e://f:g@h", "two: a://b:***@d e://f:***@h"),
    ],
)
def test_no_sentence_holds_a_password(text, shown):
    assert without_secrets(text) == shown == str(EnvironmentFault(text))
