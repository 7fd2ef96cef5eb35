"""The protobuf schemas: what is checked in compiled is what the .proto files say."""

import importlib.util

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from amct_pytorch.config.messages import FOLDER, message_class

RECORD, CALIBRATION = "scale_offset_record_pytorch", "calibration_config_pytorch"
RETRAIN = "retrain_config_pytorch"
KV_CACHE = "quant_calibration_config_pytorch"
PACKAGES = {KV_CACHE: "AMCTPytorchQuantCaliProto"}  # of the others: AMCTPytorchProto


def described(path):
    return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


@pytest.mark.parametrize("stem", [RECORD, CALIBRATION, RETRAIN, KV_CACHE])
def test_the_descriptor_sets_are_those_of_the_proto_files(tmp_path, stem):
    pytest.importorskip("grpc_tools")
    spec = importlib.util.spec_from_file_location("compile_protos", FOLDER / "compile.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.compile_protos(tmp_path)
    assert described(FOLDER / f"{stem}.desc") == described(tmp_path / f"{stem}.desc")


def test_the_default_pool_stays_untouched():
    message_class(RECORD, "AMCTPytorchProto.ScaleOffsetRecord")
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("AMCTPytorchProto.ScaleOffsetRecord")


# name, number, default of every field, from the format's documentation.
FIELDS = {
    (RECORD, "SingleLayerRecord"): {
        "scale_d": 1,
        "offset_d": 2,
        "scale_w": 3,
        "offset_w": 4,
        "shift_bit": 5,
        "tensor_balance_factor": 6,
        "skip_fusion": (9, False),
        "dst_type": (10, "INT8"),
        "act_type": (11, "INT8"),
        "wts_type": (12, "INT8"),
        "fakequant_precision_mode": (13, "DEFAULT"),
        "scale_h": 21,
        "offset_h": 22,
        "scale_r": 23,
        "offset_r": 24,
    },
    (RECORD, "SingleLayerKVCacheRecord"): {"scale": 1, "offset": 2},
    (RECORD, "MapFiledEntry"): {"key": 1, "value": 2, "kv_cache_value": 3},
    (RECORD, "ScaleOffsetRecord"): {"record": 1, "prune_record": 2},
    (RECORD, "PruneRecord"): {"producer": 1, "consumer": 2, "selective_prune": 3},
    (RECORD, "PruneNode"): {"name": 1, "attr": 2},
    (CALIBRATION, "AMCTConfig"): {
        "batch_num": (1, 1),
        "activation_offset": (2, True),
        "skip_layers": 10,
        "skip_layer_types": 11,
        "fakequant_precision_mode": (21, 1),
        "common_config": 50,
        "override_layer_types": 51,
        "override_layer_configs": 100,
        "do_fusion": (200, True),
        "skip_fusion_layers": 201,
    },
    (CALIBRATION, "OverrideLayerType"): {"layer_type": 1, "calibration_config": 2},
    (CALIBRATION, "OverrideLayer"): {"layer_name": 1, "calibration_config": 2},
    (CALIBRATION, "CalibrationConfig"): {
        "arq_quantize": 13,
        "ada_quantize": 15,
        "ifmr_quantize": 100,
        "hfmg_quantize": 101,
        "dmq_balancer": 200,
    },
    (CALIBRATION, "ARQuantize"): {"channel_wise": 1, "quant_bits": 10},
    (CALIBRATION, "ADAquantize"): {
        "num_iteration": (1, 10000),
        "reg_param": (2, 0.01),
        "beta_range_start": (3, 20),
        "beta_range_end": (4, 2),
        "warm_start": (5, 0.2),
        "channel_wise": 10,
        "quant_bits": 1000,  # an addition of this package
    },
    (CALIBRATION, "DMQBalancer"): {"migration_strength": (1, 0.5)},
    (CALIBRATION, "FMRQuantize"): {
        "search_range_start": (1, 0.7),
        "search_range_end": (2, 1.3),
        "search_step": (3, 0.01),
        "max_percentile": (4, 0.999999),
        "min_percentile": (5, 0.999999),
        "asymmetric": 6,
        "dst_type": (10, 1),
    },
    (CALIBRATION, "HFMGQuantize"): {
        "num_of_bins": (1, 4096),
        "asymmetric": 2,
        "dst_type": (10, 1),
    },
    (KV_CACHE, "AMCTQuantCaliConfig"): {
        "batch_num": (1, 1),
        "activation_offset": (2, True),
        "kv_cache_quant_config": 10,
        "override_layers_configs": 110,
    },
    (KV_CACHE, "CommonCalibrationConfig"): {"quant_layers": 1, "calibration_config": 2},
    (KV_CACHE, "OverrideLayer"): {"layer_name": 1, "kv_data_quant_config": 2},
    (KV_CACHE, "CalibrationConfig"): {"ifmr_quantize": 1, "hfmg_quantize": 2},
    (KV_CACHE, "FMRQuantize"): {
        "search_range_start": (1, 0.7),
        "search_range_end": (2, 1.3),
        "search_step": (3, 0.01),
        "max_percentile": (4, 0.999999),
        "min_percentile": (5, 0.999999),
        "asymmetric": 6,
        "quant_granularity": (11, 0),
    },
    (KV_CACHE, "HFMGQuantize"): {
        "num_of_bins": (1, 4096),
        "asymmetric": 2,
        "quant_granularity": (11, 0),
    },
    (RETRAIN, "AMCTRetrainConfig"): {
        "batch_num": (1, 1),
        "retrain_data_quant_config": 2,
        "retrain_weight_quant_config": 3,
        "skip_layers": 4,
        "override_layer_configs": 5,
        "skip_layer_types": 6,
        "override_layer_types": 7,
        "prune_config": 8,
        "regular_prune_skip_layers": 9,
        "regular_prune_skip_types": 10,
        "quant_skip_layers": 11,
        "quant_skip_types": 12,
        "fakequant_precision_mode": (21, 1),
        "shift_n": (1000, False),
    },
    (RETRAIN, "RetrainOverrideLayer"): {
        "layer_name": 1,
        "retrain_data_quant_config": 2,
        "retrain_weight_quant_config": 3,
        "prune_config": 4,
        "shift_n": 1000,
    },
    (RETRAIN, "RetrainOverrideLayerType"): {
        "layer_type": 1,
        "retrain_data_quant_config": 2,
        "retrain_weight_quant_config": 3,
        "prune_config": 4,
        "shift_n": 1000,
    },
    (RETRAIN, "RetrainDataQuantConfig"): {"ulq_quantize": 13},
    (RETRAIN, "ActULQquantize"): {"clip_max_min": 1, "fixed_min": 2, "dst_type": (3, 1)},
    (RETRAIN, "ClipMaxMin"): {"clip_max": 3, "clip_min": 5},
    (RETRAIN, "RetrainWeightQuantConfig"): {"arq_retrain": 1, "ulq_retrain": 2},
    (RETRAIN, "ARQRetrain"): {"dst_type": (1, 1), "channel_wise": 2},
    (RETRAIN, "WtsULQRetrain"): {"dst_type": (1, 1), "channel_wise": 2},
    (RETRAIN, "PruneConfig"): {"filter_pruner": 1, "n_out_of_m_pruner": 2},
    (RETRAIN, "FilterPruner"): {"balanced_l2_norm_filter_prune": 1},
    (RETRAIN, "BalancedL2NormFilterPruner"): {"prune_ratio": 1, "ascend_optimized": (2, True)},
    (RETRAIN, "NOutOfMPruner"): {"l1_selective_prune": 1},
    (RETRAIN, "L1SelectivePruner"): {"n_out_of_m_type": (1, 0), "update_freq": (2, 0)},
}


@pytest.mark.parametrize(("stem", "message"), FIELDS, ids=lambda value: value)
def test_fields_have_their_numbers_and_defaults(stem, message):
    package = PACKAGES.get(stem, "AMCTPytorchProto")
    fields = message_class(stem, f"{package}.{message}").DESCRIPTOR.fields
    expected = FIELDS[stem, message]
    assert {f.name: f.number for f in fields} == {
        name: value[0] if isinstance(value, tuple) else value for name, value in expected.items()
    }
    for field in fields:
        if isinstance(expected[field.name], tuple):
            default = expected[field.name][1]
            rounded = float(np.float32(default)) if isinstance(default, float) else default
            assert field.default_value == rounded


# label, type of every field of the configuration of PTQ, and the oneof that it is in.
KINDS = {
    "AMCTConfig": {
        "batch_num": "optional uint32",
        "activation_offset": "optional bool",
        "skip_layers": "repeated string",
        "skip_layer_types": "repeated string",
        "fakequant_precision_mode": "optional FakequantPrecisionMode",
        "common_config": "optional CalibrationConfig",
        "override_layer_types": "repeated OverrideLayerType",
        "override_layer_configs": "repeated OverrideLayer",
        "do_fusion": "optional bool",
        "skip_fusion_layers": "repeated string",
    },
    "OverrideLayerType": {
        "layer_type": "required string",
        "calibration_config": "required CalibrationConfig",
    },
    "OverrideLayer": {
        "layer_name": "required string",
        "calibration_config": "required CalibrationConfig",
    },
    "CalibrationConfig": {
        "arq_quantize": "wts_quant_algo ARQuantize",
        "ada_quantize": "wts_quant_algo ADAquantize",
        "ifmr_quantize": "acts_quant_algo FMRQuantize",
        "hfmg_quantize": "acts_quant_algo HFMGQuantize",
        "dmq_balancer": "tensor_balancer DMQBalancer",
    },
    "ARQuantize": {"channel_wise": "optional bool", "quant_bits": "optional uint32"},
    "ADAquantize": {
        "num_iteration": "optional uint32",
        "reg_param": "optional float",
        "beta_range_start": "optional float",
        "beta_range_end": "optional float",
        "warm_start": "optional float",
        "channel_wise": "optional bool",
        "quant_bits": "optional uint32",
    },
    "DMQBalancer": {"migration_strength": "optional float"},
    "FMRQuantize": {
        "search_range_start": "optional float",
        "search_range_end": "optional float",
        "search_step": "optional float",
        "max_percentile": "optional float",
        "min_percentile": "optional float",
        "asymmetric": "optional bool",
        "dst_type": "optional FMRQuantize.CalibrationDataType",
    },
    "HFMGQuantize": {
        "num_of_bins": "optional uint32",
        "asymmetric": "optional bool",
        "dst_type": "optional HFMGQuantize.CalibrationDataType",
    },
}
ENUMS = {
    "FakequantPrecisionMode": {"FORCE_FP16_QUANT": 1},
    "FMRQuantize.CalibrationDataType": {"INT8": 1, "INT16": 2},
    "HFMGQuantize.CalibrationDataType": {"INT8": 1, "INT16": 2},
}


@pytest.fixture(scope="module")
def calibration():
    [file] = described(FOLDER / f"{CALIBRATION}.desc").file
    return file


def kind_of(field, message):
    """Label (the name of the oneof for a field of one) and type, as in a .proto."""
    enums = descriptor_pb2.FieldDescriptorProto
    label = enums.Label.Name(field.label).removeprefix("LABEL_").lower()
    if field.HasField("oneof_index"):
        label = message.oneof_decl[field.oneof_index].name
    plain = enums.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"{label} {field.type_name.removeprefix('.AMCTPytorchProto.') or plain}"


def test_every_message_of_the_configuration_is_listed(calibration):
    assert calibration.package == "AMCTPytorchProto"
    assert {message.name for message in calibration.message_type} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_fields_have_their_labels_and_types(calibration, name):
    [message] = [m for m in calibration.message_type if m.name == name]
    assert {field.name: kind_of(field, message) for field in message.field} == KINDS[name]


def test_enums_have_their_names_and_numbers(calibration):
    found = {enum.name: enum for enum in calibration.enum_type}
    for message in calibration.message_type:
        found |= {f"{message.name}.{enum.name}": enum for enum in message.enum_type}
    numbers = {name: {v.name: v.number for v in enum.value} for name, enum in found.items()}
    assert numbers == ENUMS
