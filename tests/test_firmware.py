"""The C header compiles to the file's bytes, and the lines for tflite-micro name its methods."""

import hashlib
import subprocess
import zlib

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import system_tool
from tests.flatbuffer_files import File

from secateur import firmware
from secateur.errors import SecateurError

# The header is included twice, and by two units, as it would be in a project.
MAIN = """
#include "model.h"
#include "model.h"
#include <stdint.h>
#include <stdio.h>

size_t other(void);

int main(void) {{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < {name}_tflite_len; i++) {{
        crc ^= {name}_tflite[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
    }}
    if (sizeof {name}_tflite != {name}_tflite_len || other() != {name}_tflite_len) return 1;
    printf("%u %u %u\\n", (unsigned){name}_tflite_len, (unsigned)((uintptr_t){name}_tflite % 16),
           (unsigned)~crc);
    return 0;
}}
"""
OTHER = """
#include "model.h"
size_t other(void);
size_t other(void) {{ return {name}_tflite_len; }}
"""
COMPILERS = {
    "c": (("cc", "gcc", "clang"), "gcc", "-std=c11"),
    "cc": (("c++", "g++", "clang++"), "g++", "-std=c++17"),
    "cpp": (("c++", "g++", "clang++"), "g++", "-std=c++11"),
}


def model(name: str = "x */ ??/") -> File:
    """Two convolutions and a few more, quantized, with names that a comment must not take as is."""
    file = File()
    x = file.tensor((1, 4, 4, 1), "int8", scale=0.1, name=name)
    kernel = file.tensor((1, 1, 1, 1), "int8", scale=0.5, values=[[[[2]]]])
    bias = file.tensor((1,), "int32", scale=0.05, values=[7])
    file.here.inputs = np.int32([x])
    for operator in ("CONV_2D", "CONV_2D", "MAX_POOL_2D", "SOFTMAX"):
        inputs = [x, kernel, bias] if operator == "CONV_2D" else [x]
        x = file.tensor((1, 4, 4, 1), "int8", scale=1 / 256, name="the\nend")
        file.operator(operator, inputs, [x])
    file.here.outputs = np.int32([x])
    return file


@pytest.mark.parametrize("suffix", COMPILERS)
@pytest.mark.parametrize("name", ["lab", "7 days*/ in \\ Köln ??/\n"])
def test_the_header_compiles_to_the_bytes_of_the_file(tmp_path, suffix, name):
    names, package, standard = COMPILERS[suffix]
    compiler = system_tool(*names, package=package)
    blob = model().blob
    called = firmware.c_name(name)
    (tmp_path / "model.h").write_text(firmware.c_header(blob, name), encoding="ascii")
    (tmp_path / f"main.{suffix}").write_text(MAIN.format(name=called))
    (tmp_path / f"other.{suffix}").write_text(OTHER.format(name=called))
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Wcomment", "-Wtrigraphs", "-Werror"]
    units = [f"main.{suffix}", f"other.{suffix}"]
    command = [compiler, standard, *strict, *units, "-o", "check"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([tmp_path / "check"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(blob)), "0", str(zlib.crc32(blob))]


def test_the_comment_tells_what_the_file_holds():
    blob = model().blob
    text = firmware.c_header(blob, "lab")
    comment, code = text.split("*/")
    assert f"lab, a .tflite file of {len(blob)} bytes" in comment
    assert hashlib.sha256(blob).hexdigest() in comment
    assert "input(0) x * / ? ?/: int8 [1, 4, 4, 1], scale 0.100000001, zero point 0\n" in comment
    assert r"output(0) the\nend: int8 [1, 4, 4, 1], scale 0.00390625, zero point 0" in comment
    assert "operators: 2 CONV_2D, 1 MAX_POOL_2D, 1 SOFTMAX\n" in comment
    assert "   resolver.AddMaxPool2D();\n" in comment
    assert "no identifier" not in comment
    values = code.partition("{")[2].partition("}")[0].split(",")
    assert bytes(int(value, 16) for value in values if value.strip()) == blob
    assert firmware.c_header(blob, "lab") == text and max(map(len, text.splitlines())) <= 100


def test_a_name_that_c_does_not_take_is_mended_and_told():
    text = firmware.c_header(model().blob, "lab-cnn 86")
    assert '"lab-cnn 86"' in text.split("*/")[0] or "lab-cnn 86," in text.split("*/")[0]
    assert "The name is no identifier in C; lab_cnn_86 stands for it." in text
    assert "lab_cnn_86_tflite[]" in text and "#ifndef LAB_CNN_86_TFLITE_H" in text


@given(st.text())
def test_every_name_becomes_an_identifier_and_stays_one(name):
    called = firmware.c_name(name)
    assert called.isascii() and called.isidentifier()
    assert "__" not in called and not called.startswith("_")  # reserved in C and C++
    assert firmware.c_name(called) == called


def test_the_resolver_gets_each_operator_once():
    assert firmware.resolver_lines(model().blob) == [
        "static tflite::MicroMutableOpResolver<3> resolver;",
        "resolver.AddConv2D();",
        "resolver.AddMaxPool2D();",
        "resolver.AddSoftmax();",
    ]


# Each method as tflite-micro's micro_mutable_op_resolver.h spells it.
METHODS = {
    "ADD": "AddAdd",
    "ADD_N": "AddAddN",
    "ARG_MAX": "AddArgMax",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "BATCH_MATMUL": "AddBatchMatMul",
    "BATCH_TO_SPACE_ND": "AddBatchToSpaceNd",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "CUMSUM": "AddCumSum",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "EXPAND_DIMS": "AddExpandDims",
    "FULLY_CONNECTED": "AddFullyConnected",
    "HARD_SWISH": "AddHardSwish",
    "L2_NORMALIZATION": "AddL2Normalization",
    "L2_POOL_2D": "AddL2Pool2D",
    "LEAKY_RELU": "AddLeakyRelu",
    "LOGISTIC": "AddLogistic",
    "LOG_SOFTMAX": "AddLogSoftmax",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MEAN": "AddMean",
    "PADV2": "AddPadV2",
    "QUANTIZE": "AddQuantize",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "SOFTMAX": "AddSoftmax",
    "SPLIT_V": "AddSplitV",
    "STRIDED_SLICE": "AddStridedSlice",
    "SVDF": "AddSvdf",
    "TANH": "AddTanh",
    "TRANSPOSE_CONV": "AddTransposeConv",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
    "ZEROS_LIKE": "AddZerosLike",
}


@pytest.mark.parametrize("operator", METHODS)
def test_methods_are_spelt_as_tflite_micro_does(operator):
    file = File()
    file.operator(operator, [], [])
    assert firmware.resolver_lines(file.blob)[1:] == [f"resolver.{METHODS[operator]}();"]


def test_every_operator_of_the_table_is_one_of_the_schema():
    assert firmware.MICRO - set(vars(schema.BuiltinOperator)) == set()
    assert set(firmware.METHODS) - firmware.MICRO == set()


def test_custom_operators_go_by_their_own_name_and_unknown_ones_into_a_comment():
    file = File()
    file.operator("CUSTOM", [], [], custom="ethos-u")
    file.graph()
    file.operator("CUSTOM", [], [], custom="Mine*/")
    file.operator("GELU", [], [])
    file.operator("GELU", [], [])
    assert firmware.resolver_lines(file.blob) == [
        "static tflite::MicroMutableOpResolver<1> resolver;",
        "resolver.AddEthosU();",
        "// not in tflite-micro: Mine* /",
        "// not in tflite-micro: GELU",
    ]
    assert "1 ethos-u, 1 Mine* /, 2 GELU" in firmware.c_header(file.blob, "x")


@pytest.mark.parametrize("write", [firmware.resolver_lines, lambda b: firmware.c_header(b, "x")])
def test_what_is_no_tflite_file_is_refused(write):
    with pytest.raises(SecateurError, match="is not a .tflite file"):
        write(b"something else")
