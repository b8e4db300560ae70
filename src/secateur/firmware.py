"""A `.tflite` file as source text for a microcontroller: a C array, and what tflite-micro must know.

Read from the bytes of the file alone; the text depends on nothing else.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator

from secateur.runtimes import litert
from secateur.tflite import TfliteFile

# Operators that tflite-micro's MicroMutableOpResolver can add, as the schema names them.
MICRO = frozenset(
    """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D
    DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FILL
    FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF
    L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR
    LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2
    PRELU QUANTIZE READ_VARIABLE REDUCE_MAX REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND
    SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH
    TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
    """.split()
)
# Its methods are these names in capitals and small letters, but for:
METHODS = {
    "BATCH_MATMUL": "AddBatchMatMul",
    "CUMSUM": "AddCumSum",
    "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
# Custom operators that have a method of their own.
CUSTOM = {
    "CIRCULAR_BUFFER": "AddCircularBuffer",
    "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    "ethos-u": "AddEthosU",
}
BYTES_PER_LINE = 16


def resolver_lines(blob: bytes) -> list[str]:
    """Return the C++ lines that give tflite-micro the operators of a `.tflite`, each once.

    An operator that it has no method for is named in a comment: the model does not run there.

    >>> from ai_edge_litert import schema_py_generated as schema
    >>> code = schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.SOFTMAX)
    >>> graph = schema.SubGraphT(operators=[schema.OperatorT()])
    >>> model = schema.ModelT(version=3, operatorCodes=[code], subgraphs=[graph])
    >>> builder = schema.flatbuffers.Builder(0)
    >>> _ = builder.Finish(model.Pack(builder), b"TFL3")
    >>> resolver_lines(bytes(builder.Output()))
    ['static tflite::MicroMutableOpResolver<1> resolver;', 'resolver.AddSoftmax();']

    Raises `SecateurError` for a damaged file.
    """
    found = dict.fromkeys(_operators(blob))
    methods = [method for name in found if (method := _method(name))]
    return [
        f"static tflite::MicroMutableOpResolver<{max(len(methods), 1)}> resolver;",
        *(f"resolver.{method}();" for method in methods),
        *(f"// not in tflite-micro: {_plain(name)}" for name in found if not _method(name)),
    ]


def c_name(name: str) -> str:
    """Return a name that C and C++ take; what they do not becomes "_", never doubled or in front.

    >>> c_name("lab-cnn, 86 % zeros"), c_name("2048"), c_name("é")
    ('lab_cnn_86_zeros', 'model_2048', 'model')
    """
    mended = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    return mended if mended[:1].isalpha() else f"model_{mended}".rstrip("_")


def c_header(blob: bytes, name: str) -> str:
    """Return a header for C11 and C++11 with the bytes of a `.tflite`; same bytes, same text.

    It holds `NAME_tflite`, aligned to 16 bytes, and `NAME_tflite_len`. A comment tells the sha256,
    inputs, outputs and operators, the lines for tflite-micro, and a name that had to be mended.

    >>> from ai_edge_litert import schema_py_generated as schema
    >>> model = schema.ModelT(version=3, subgraphs=[schema.SubGraphT()])
    >>> builder = schema.flatbuffers.Builder(0)
    >>> _ = builder.Finish(model.Pack(builder), b"TFL3")
    >>> print(c_header(bytes(builder.Output()), "empty").partition("stddef.h>")[2])
    <BLANKLINE>
    <BLANKLINE>
    alignas(16) static const unsigned char empty_tflite[] = {
        0x14, 0x00, 0x00, 0x00, 0x54, 0x46, 0x4c, 0x33, ...
    };
    static const size_t empty_tflite_len = 48;
    <BLANKLINE>
    #endif  // EMPTY_TFLITE_H
    <BLANKLINE>

    Raises `SecateurError` for a damaged file.
    """
    called = c_name(name)
    rows = [blob[at : at + BYTES_PER_LINE] for at in range(0, len(blob), BYTES_PER_LINE)]
    guard = f"{called.upper()}_TFLITE_H"
    return "\n".join(
        [
            "/*",
            *(f" * {line}".rstrip() for line in _description(blob, name, called)),
            " */",
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            "#ifndef __cplusplus",
            "#include <stdalign.h>",
            "#endif",
            "#include <stddef.h>",
            "",
            f"alignas(16) static const unsigned char {called}_tflite[] = {{",
            *("    " + ", ".join(f"0x{byte:02x}" for byte in row) + "," for row in rows),
            "};",
            f"static const size_t {called}_tflite_len = {len(blob)};",
            "",
            f"#endif  // {guard}",
            "",
        ]
    )


def _description(blob: bytes, name: str, called: str) -> Iterator[str]:
    counts = Counter(_operators(blob))
    yield f"{_plain(name)}, a .tflite file of {len(blob)} bytes"
    yield f"sha256 {hashlib.sha256(blob).hexdigest()}"
    if called != name:
        yield f"The name is no identifier in C; {called} stands for it."
    yield ""
    yield from _interface(blob)
    yield "operators: " + ", ".join(f"{count} {_plain(o)}" for o, count in counts.items())
    yield ""
    yield "For tflite-micro:"
    yield from (f"  {line}" for line in resolver_lines(blob))


def _interface(blob: bytes) -> Iterator[str]:
    """One line for each input(k) and output(k): type, shape, and how its codes are scaled."""
    from ai_edge_litert import schema_py_generated as schema

    file = TfliteFile.parse(blob, "the .tflite file")
    types = {code: name for name, code in vars(schema.TensorType).items() if name[0] != "_"}
    graph = schema.Model.GetRootAs(blob, 0).Subgraphs(0)
    for word, named in (("input", file.inputs), ("output", file.outputs)):
        for place, (name, index) in enumerate(named.items()):
            tensor = graph.Tensors(index)
            shape = ", ".join(str(tensor.Shape(k)) for k in range(tensor.ShapeLength()))
            line = f"{word}({place}) {_plain(name)}: {types[tensor.Type()].lower()} [{shape}]"
            scaling = tensor.Quantization()
            if scaling is not None and scaling.ScaleLength():
                zero_point = scaling.ZeroPoint(0) if scaling.ZeroPointLength() else 0
                # Nine digits tell every float32 apart.
                line += f", scale {scaling.Scale(0):.9g}, zero point {zero_point}"
            yield line


def _operators(blob: bytes) -> list[str]:
    """Names of the operators in order, each as often as it is there; custom ones by their own."""
    litert.prepare()
    from ai_edge_litert import schema_py_generated as schema

    file = TfliteFile.parse(blob, "the .tflite file")
    model = schema.Model.GetRootAs(blob, 0)
    graphs = [model.Subgraphs(g) for g in range(model.SubgraphsLength())]
    operators = [graph.Operators(i) for graph in graphs for i in range(graph.OperatorsLength())]
    owns = [model.OperatorCodes(o.OpcodeIndex()).CustomCode() for o in operators]
    return [
        own.decode(errors="replace") if own and operator.name == "CUSTOM" else operator.name
        for own, operator in zip(owns, file.operators, strict=True)
    ]


def _method(name: str) -> str | None:
    """The resolver's method that adds an operator; None where it has none."""
    if name in CUSTOM:
        return CUSTOM[name]
    words = (word if word[0].isdigit() else word.capitalize() for word in name.split("_"))
    return METHODS.get(name, "Add" + "".join(words)) if name in MICRO else None


def _plain(text: str) -> str:
    """Text that ends no comment in C and opens none, in ASCII."""
    text = text.encode("unicode_escape").decode()
    return text.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
