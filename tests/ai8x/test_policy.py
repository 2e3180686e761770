"""QAT policies: what is read, what is filled in, what is refused and how the message helps."""

import warnings
from types import SimpleNamespace

import pytest

import qatlib.ai8x as ai8x
from qatlib.ai8x.policy import QATPolicy, load_policy

YAML = """
start_epoch: 10
weight_bits: 8
shift_quantile: 0.995
outlier_removal_z_score: 6
overrides:
  conv1: {weight_bits: 4, shift_quantile: 0.98}
  block.conv2:
    shift_quantile: 1
  fc:
    weight_bits: 2
"""
EXPECTED = QATPolicy(8, 0.995, 6.0, 10, {"conv1": (4, 0.98), "block.conv2": (8, 1.0), "fc": (2, 0.995)})


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(YAML)
    return file


def test_yaml_file_path_string_args_and_dict_give_the_same(path):
    import yaml

    assert load_policy(path) == EXPECTED
    assert load_policy(str(path)) == EXPECTED
    assert load_policy(SimpleNamespace(qat_policy=str(path))) == EXPECTED
    assert load_policy(yaml.safe_load(YAML)) == EXPECTED
    assert load_policy(EXPECTED) is EXPECTED


def test_defaults_and_layers():
    policy = load_policy({"weight_bits": 8})
    assert policy == QATPolicy(weight_bits=8, shift_quantile=1.0, outlier_removal_z_score=8.0, start_epoch=None)
    assert EXPECTED.for_layer("conv1") == (4, 0.98)
    assert EXPECTED.for_layer("any other") == (8, 0.995)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({}, "lacks 'weight_bits'"),
        ({"weight_bits": None}, "lacks 'weight_bits'"),
        ({"weight_bits": 3}, "weight_bits of .* is 3; choose 1, 2, 4 or 8"),
        ({"weight_bits": "8"}, "weight_bits of .* is '8'"),
        ({"weight_bits": True}, "weight_bits of .* is True"),
        ({"weight_bits": 8, "shift_quantile": 0}, "shift_quantile of .* is 0"),
        ({"weight_bits": 8, "shift_quantile": 1.5}, "shift_quantile of .* is 1.5"),
        ({"weight_bits": 8, "shift_quantile": float("nan")}, "shift_quantile of .* is nan"),
        ({"weight_bits": 8, "outlier_removal_z_score": -1}, "outlier_removal_z_score of .* is -1"),
        ({"weight_bits": 8, "start_epoch": 2.5}, "start_epoch of .* is 2.5"),
        ({"weight_bits": 8, "start_epoch": -1}, "start_epoch of .* is -1"),
        ({"weight_bits": 8, "overrides": ["conv1"]}, "overrides of .* must map layer names"),
        ({"weight_bits": 8, "overrides": {"conv1": 4}}, "override 'conv1' of .* is 4; write it as {weight_bits: 4}"),
        ({"weight_bits": 8, "overrides": {"conv1": {"weight_bits": 5}}}, "weight_bits of override 'conv1' .* is 5"),
        ({"weigth_bits": 8}, "has the key 'weigth_bits'; did you mean 'weight_bits'"),
        ({"weight_bits": 8, "override": {}}, "did you mean 'overrides'"),
        ({"weight_bits": 8, "overrides": {"conv1": {"weight_bit": 4}}}, "did you mean 'weight_bits'"),
    ],
)
def test_wrong_values_are_refused_with_the_value_and_the_remedy(policy, message):
    with pytest.raises(ValueError, match=message):
        load_policy(policy)


def test_unknown_keys_are_ignored_with_a_warning():
    with pytest.warns(UserWarning, match="'comment', which is unknown and ignored"):
        load_policy({"weight_bits": 8, "comment": "for the demo"})


def test_good_policies_give_no_warning(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_policy(path)


def test_files_need_a_start_epoch_and_must_be_readable(tmp_path):
    file = tmp_path / "p.yaml"
    with pytest.raises(FileNotFoundError, match="no QAT policy file"):
        load_policy(file)
    for text, message in (
        ("weight_bits: 8", "lacks 'start_epoch'"),
        ("weight_bits: [8", "not valid YAML"),
        ("", "holds None"),
        ("just text", "holds 'just text'"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_policy(file)
    with pytest.raises(TypeError, match="of type int"):
        load_policy(8)


def test_aliases_that_stand_for_a_thousand_million_values_give_a_short_message(tmp_path):
    levels = [f"l{i}: &l{i} [{', '.join(['*l' + str(i - 1)] * 10) if i else 8}]" for i in range(10)]
    file = tmp_path / "bomb.yaml"
    for key in ("weight_bits: *l9", "weight_bits: 8\nshift_quantile: *l9", "weight_bits: 8\noverrides: {conv1: *l9}"):
        file.write_text("\n".join([*levels, "start_epoch: 1", key]))
        with pytest.warns(UserWarning, match="unknown and ignored"), pytest.raises(ValueError, match=r"is \[\[") as raised:
            load_policy(file)
        assert len(str(raised.value)) < 700


def test_overrides_that_name_no_layer_are_refused_with_the_nearest_names():
    policy = load_policy({"weight_bits": 8, "overrides": {"block.cov1": {"weight_bits": 4}}})
    with pytest.raises(ValueError, match="overrides 'block.cov1', .* did you mean 'block.conv1'"):
        policy.check_names(["fc", "block.conv1"])
    with pytest.raises(ValueError, match="did you mean 'fc'"):
        policy.check_names(["fc"])
    net = ai8x.Conv2d(3, 4, 1)
    with pytest.raises(ValueError, match="no layer has this name"):
        ai8x.initiate_qat(net, policy)
    assert net.weight_bits == 0
