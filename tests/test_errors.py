"""Every error that ends a command has the exit code of its kind."""

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
