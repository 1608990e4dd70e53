"""Things built by name: what a configuration may be, and what an error says."""

import pytest

from metricseg.utils.registry import Registry

THINGS = Registry("thing")


@THINGS.register("pair")
def pair(a, b=2):
    return a, b


class Narrow:
    def __init__(self, a):
        self.a = a


@THINGS.register("wide")
class Wide(Narrow):
    def __init__(self, b=0, *, c=1, **options):
        super().__init__(**options)


def test_arguments_of_the_call_are_added():
    assert THINGS.build({"name": "pair", "a": 1}, b=3) == (1, 3)
    config = {"class_path": "fractions.Fraction", "init_args": {"numerator": 3}}
    assert THINGS.build(config, denominator=4) == 0.75 and "denominator" not in config["init_args"]


def test_forms():
    assert THINGS.build({"name": "pair", "a": 1}) == (1, 2)
    assert THINGS.build({"class_path": "fractions.Fraction", "init_args": {"numerator": 3}}) == 3
    assert THINGS.build({"class_path": "fractions.Fraction"}) == 0
    options = {"numerator": 3, "denominator": 4}
    assert THINGS.build({"class_path": "fractions.Fraction", "init_args": options, "denominator": 2}) == 1.5


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ("nosuch", ValueError, "no thing is called 'nosuch'; there are pair"),
        ({}, ValueError, "no thing is called None; there are pair"),
        ({"name": ["pair"]}, ValueError, r"no thing is called \['pair'\]; there are pair"),
        (
            {"name": "pair", "c": 1},
            ValueError,
            "thing 'pair' can't be built from {'c': 1}: .*'c'; its arguments are a, b",
        ),
        ({"name": "wide", "z": 1}, ValueError, "'z'; its arguments are b, c, a"),
        ("pair", ValueError, "thing 'pair' can't be built from {}: .*'a'"),
        (None, TypeError, "a thing is described by a name or a mapping, got None"),
        (["pair"], TypeError, r"a thing is described by a name or a mapping, got \['pair'\]"),
        ({"class_path": ["x"]}, ValueError, "can't be imported"),
        ({"class_path": "math.pi"}, ValueError, "'math.pi' is 3.14.*; class_path takes a class or a function"),
        ({"class_path": "no.such"}, ValueError, "'no.such' can't be imported"),
        (
            {"class_path": "fractions.Fraction", "name": "pair"},
            ValueError,
            "thing: name 'pair' beside class_path 'fractions.Fraction'; .*init_args",
        ),
    ],
)
def test_bad_configurations(config, error, words):
    with pytest.raises(error, match=words):
        THINGS.build(config)


def test_taken_name():
    with pytest.raises(ValueError, match="thing 'pair' is registered already"):
        THINGS.register("pair")(object)
