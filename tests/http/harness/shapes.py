# SPDX-License-Identifier: Apache-2.0
"""The shapes of answers: JSON Schema files in tests/http/shapes, one a kind of answer."""

import functools
import json
import pathlib

import jsonschema
import referencing
import referencing.jsonschema

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "shapes"


@functools.cache
def _registry():
    pairs = []
    for path in sorted(FOLDER.glob("*.json")):
        schema = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        resource = referencing.jsonschema.DRAFT202012.create_resource(schema)
        pairs.append((path.name, resource))
    return referencing.Registry().with_resources(pairs)


@functools.cache
def _validator(name):
    schema = _registry()[f"{name}.json"].contents
    return jsonschema.Draft202012Validator(schema, registry=_registry())


def check(name, value):
    """Asserts that value has the shape of shapes/<name>.json."""
    problems = [f"{error.json_path}: {error.message[:300]}"
                for error in _validator(name).iter_errors(value)]
    assert not problems, f"not a {name}: {problems}\n{json.dumps(value)[:1500]}"
