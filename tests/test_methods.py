"""The registry of methods: each row says what its function does, and reading it imports nothing heavy."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import bcnmf_sc as bc
from bcnmf_sc._methods import METHODS, fields_written, method_of
from bcnmf_sc._stored import PARAMETERS
from bcnmf_sc._utils.errors import UserError
from bcnmf_sc.metrics._compare import METHODS as COMPARED


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_row_names_the_fields_that_the_function_promises(method):
    assert method.function is getattr(bc.tl, method.name)
    text = inspect.getdoc(method.function).partition("\nReturns\n")[2].partition("\nExamples\n")[0]
    columns = re.findall(r'`(?:\[modality\])?\.(obs|var)\[key_added \+ "_(\w+)"\]', text)
    columns += re.findall(r'`\.(obsm)\["X_" \+ key_added \+ "_(\w+)"\]', text)
    for slot in ("obs", "var", "obsm"):
        said = {name for where, name in columns if where == slot}
        # a likelihood's own parameters are known from the likelihood
        assert set(getattr(method, slot)) - set(PARAMETERS) == said - set(PARAMETERS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_row_names_arguments_of_the_function(method):
    arguments = inspect.signature(method.function).parameters
    assert set(method.sides or ()) <= set(arguments)
    assert method.multimodal == ("MuData" in next(iter(arguments.values())).annotation)
    for fixed in method.compared.values():
        assert set(fixed) <= set(arguments)


def test_names_are_those_of_one_method():
    for given in ([m.name for m in METHODS], [m.command for m in METHODS if m.command], list(COMPARED)):
        assert len(given) == len(set(given))
    assert set(fields_written("obs")) >= {"role", "enriched", "size_factor"}
    assert set(bc.tl.__all__) > {m.name for m in METHODS}


def test_the_method_of_a_stored_fit():
    for record, name in (
        ({"params": {"method": "deltanmf"}}, "deltanmf"),
        ({"params": {"background_key": "condition"}}, "bcnmf"),
        ({"params": {}, "posterior": {}}, "gpnsf"),
        ({"params": {}}, "nmf"),
        ({}, "nmf"),
    ):
        assert method_of(record).name == name
    with pytest.raises(UserError, match=r"'nmf', 'bcnmf'.*got one of 'later'"):
        method_of({"params": {"method": "later"}})


def test_the_registry_imports_no_method():
    code = "import sys; from bcnmf_sc.cli import cli; cli(['--help'], standalone_mode=False); "
    code += "print([n for n in sys.modules if n.startswith(('bcnmf_sc.tl', 'bcnmf_sc.engine', 'anndata', 'torch'))])"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert all(method.summary in " ".join(ran.stdout.split()) for method in METHODS)
