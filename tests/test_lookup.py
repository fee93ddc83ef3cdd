"""Wrong names are answered with right ones."""

import pytest

from jaxseg.errors import UserError
from jaxseg.lookup import lookup, nearest

TABLE = {"resnet18": 18, "resnet50": 50, "mobilenet_v2": 2}


def test_a_right_name_gives_its_value():
    assert lookup(TABLE, "resnet50", "backbone") == 50


def test_a_value_may_be_false():
    assert lookup({"": None}, "", "kind") is None


def test_a_name_nearby_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"^unknown backbone 'mobilenet': did you mean mobilenet_v2\?$"):
        lookup(TABLE, "mobilenet", "backbone")
    with pytest.raises(UserError, match=r"did you mean resnet50 or resnet18\?|did you mean resnet18 or resnet50\?"):
        lookup(TABLE, "resnet", "backbone")


@pytest.mark.parametrize("name", ["zzz", "", "42"])
def test_a_name_far_off_is_answered_with_all_in_order(name):
    with pytest.raises(UserError, match=f"'{name}': there are mobilenet_v2, resnet18, resnet50."):
        lookup(TABLE, name, "backbone")


def test_what_is_no_string_is_answered_too():
    assert nearest(18, TABLE) == "there are mobilenet_v2, resnet18, resnet50."


def test_a_mistake_of_the_user_is_a_value_error():
    with pytest.raises(ValueError, match="unknown thing"):
        lookup(TABLE, "x", "thing")
