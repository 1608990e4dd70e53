"""Things built by name: what a configuration may be, and what an error says."""

import pytest

from metricseg.registry import Registry

THINGS = Registry("thing")


@THINGS.register("pair")
def pair(a, b=2):
    return a, b


def test_forms():
    assert THINGS.build({"name": "pair", "a": 1}) == (1, 2)
    assert THINGS.build({"class_path": "fractions.Fraction", "init_args": {"numerator": 3}}) == 3
    assert THINGS.build({"class_path": "fractions.Fraction"}) == 0


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ("nosuch", ValueError, "no thing is called 'nosuch'; there are pair"),
        ({}, ValueError, "no thing is called None; there are pair"),
        ({"name": ["pair"]}, ValueError, r"no thing is called \['pair'\]; there are pair"),
        ({"name": "pair", "c": 1}, ValueError, "thing 'pair' can't be built from {'c': 1}: .*'c'"),
        ("pair", ValueError, "thing 'pair' can't be built from {}: .*'a'"),
        (None, TypeError, "a thing is described by a name or a mapping, got None"),
        (["pair"], TypeError, r"a thing is described by a name or a mapping, got \['pair'\]"),
        ({"class_path": "no.such"}, ValueError, "'no.such' can't be imported"),
        (
            {"class_path": "fractions.Fraction", "numerator": 3},
            ValueError,
            "thing: numerator beside class_path; .*init_args",
        ),
    ],
)
def test_bad_configurations(config, error, words):
    with pytest.raises(error, match=words):
        THINGS.build(config)


def test_taken_name():
    with pytest.raises(ValueError, match="thing 'pair' is registered already"):
        THINGS.register("pair")(object)
