"""The commands about files: write them in every format, measure those that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli_options import (
    AllowChanceOption,
    DataOption,
    ImageSizeOption,
    ImportOption,
    LayerOption,
    OutputsOption,
    ScaleOption,
    as_image_size,
    as_layers,
    as_scale,
    frameworks,
    import_all,
    out,
    tell_notes,
)
from secateur.errors import SecateurError

OUT = Path("out")


def export(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.")],
    formats: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: keras, h5, float32, sparse, float16, dynamic, int4, int8, int16x8, "
            "onnx, onnx-dynamic, onnx-int8; else float32,dynamic, or what the bits and ranges beside "
            "the file are for."
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Directory for the files.")] = OUT,
    calibration: Annotated[
        str | None,
        typer.Option(help="Data whose training part gives int8 and int16x8 their ranges."),
    ] = None,
    data: DataOption = None,
    scale: ScaleOption = None,
    image_size: ImageSizeOption = None,
    layer: LayerOption = None,
    float_io: Annotated[
        bool, typer.Option("--float-io", help="Floats in and out of int8 and int16x8 files.")
    ] = False,
    allow_float: Annotated[
        bool,
        typer.Option(
            "--allow-float", help="Keep an integer file with float operators, as 'mixed'."
        ),
    ] = False,
    stripped: Annotated[
        bool, typer.Option("--strip", help="Leave out names, metadata and signatures.")
    ] = False,
    c_array: Annotated[
        bool, typer.Option("--c-array", help="Write a C header beside each .tflite.")
    ] = False,
    allow_chance: AllowChanceOption = False,
    outputs: OutputsOption = None,
    imports: ImportOption = None,
) -> None:
    """Write the files that a runtime loads, each reloaded, run and checked.

    Bits and ranges that a quantize step left beside the model (.quantization.json) are used.

    Examples:
      secateur export model.keras

      secateur export model.keras --formats float32,dynamic,int8,int4 --calibration mnist --data mnist

      secateur export model.keras --formats int8 --calibration data.npz --strip --c-array

      secateur export model.keras --formats int4 --layer 'dense*=4/32' --layer 'conv*=8' --layer head=float
    """
    from secateur.artifact import FORMATS, add_to_manifest, refuse_inputs

    layers = as_layers(layer)
    if (folder / "run.json").exists() or (folder / ".stages").exists():
        raise SecateurError(
            f"{folder} holds a run, whose manifest would be lost; choose another --out"
        )
    with frameworks():
        from secateur import datasets
        from secateur.exporting import export as export_model
        from secateur.file_rows import require_same
        from secateur.loading import load
        from secateur.measurement import meanings
        from secateur.measurement import measure as measure_file
        from secateur.runtimes.keras import load as load_session
        from secateur.widths import beside
    import_all(imports)
    found = None
    if beside(model).is_file() and not layers:
        found = load(model)
        out.print(
            f"{beside(model)}: bits and ranges of {found.specification.format}, used",
            soft_wrap=True,
        )
    elif beside(model).is_file():
        out.print(f"{beside(model)}: not used, --layer says other bits", soft_wrap=True)
    session: Any = load_session(model)
    means = meanings(session, model, outputs)
    loaded = session.model if found is None else found.model
    if formats is None:
        formats = "float32," + ("dynamic" if found is None else found.specification.format)

    names = [name.strip() for name in formats.split(",") if name.strip()]
    planned = [f"{model.stem}-{name}{FORMATS.get(name, '')}" for name in names]
    refuse_inputs({f"--out: {p}": folder / p for p in planned}, (model, data, calibration))

    def read(name: str | None) -> Any:
        if name is None:
            return None
        found = datasets.load(name, scale=as_scale(scale), image_size=as_image_size(image_size))
        return datasets.fit_to(found, loaded.input_shape[1:], loaded.output_shape[1:])

    measured_on, calibrated_on = read(data), read(calibration)
    artifacts = export_model(
        found or loaded,
        names,
        folder,
        stage=model.stem,
        calibration=calibrated_on,
        data=measured_on,
        imports=tuple(imports or ()),
        io="float" if float_io else "int",
        allow_float=allow_float,
        strip=stripped,
        header=c_array,
        layers=layers,
        allow_chance=allow_chance,
        outputs=means,
    )
    add_to_manifest(folder, artifacts)
    from secateur.reporting.console import measurements

    records = []
    for artifact in artifacts:
        measured = measure_file(artifact.path, measured_on, outputs=means)
        require_same(artifact)
        records.append({**measured.to_record(), "path": str(artifact.path)})
    out.print(measurements(records))
    if measured_on is not None:
        tell_notes(measured_on, "test", *(["calibration"] if data == calibration else []))
    if calibrated_on is not None and data != calibration:
        tell_notes(calibrated_on, "calibration")
    for artifact in artifacts:
        told = f"{artifact.path}: reloaded and {_compared(artifact.parity)}"
        out.print(told, highlight=False, soft_wrap=True)
    for text in [text for artifact in artifacts for text in artifact.notes]:
        out.print(text, highlight=False, soft_wrap=True)


def _compared(parity: Mapping[str, Any]) -> str:
    if not parity:
        return "run; not compared on data"
    return (
        f"run; outputs differ from the model's by {parity['relative_rms']:.1e} of their spread "
        f"(relative RMS), the same answer for {100 * parity['agreement']:.1f} % of {parity['n']} "
        f"samples of {parity['on']}"
    )


def measure(
    files: Annotated[list[Path], typer.Argument(help=".tflite, .onnx, .keras or .h5 files.")],
    data: DataOption = None,
    scale: ScaleOption = None,
    image_size: ImageSizeOption = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many test samples.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: litert, litert:reference, onnx, keras, tflm, vela:ethos-u55-128; "
            "else the file's own."
        ),
    ] = None,
    outputs: OutputsOption = None,
    codes: Annotated[
        bool, typer.Option("--codes", help="The data are codes of the file's input, not values.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain records.")] = False,
    imports: ImportOption = None,
) -> None:
    """Bytes, gzip, zeros, accuracy and loss in the file's own runtime, latency.

    Examples:
      secateur measure out/pruned-dynamic.tflite --data mnist

      secateur measure out/*-int8.tflite --runtime litert,tflm,vela:ethos-u55-128 --data mnist
    """
    from secateur import datasets
    from secateur.measurement import measure as measure_file
    from secateur.outputs import asked
    from secateur.runtimes import runtime as runtime_named

    asked(outputs)
    specs = [spec.strip() for spec in runtime.split(",")] if runtime else [None]
    for spec in specs:
        if spec is not None:
            runtime_named(spec).prepare()
    if any(file.suffix in (".keras", ".h5") for file in files):
        with frameworks():
            import keras  # noqa: F401 - here, so that its start-up noise stays hidden
        import_all(imports)
    loaded = None
    if data is not None:
        loaded = datasets.load(
            data, scale=as_scale(scale), image_size=as_image_size(image_size), limit=limit
        )
    records, refused = [], []
    for file, spec in ((file, spec) for file in files for spec in specs):
        try:
            measured = measure_file(
                file, loaded, threads=threads, runtime=spec, outputs=outputs, codes=codes
            )
            records.append({**measured.to_record(), "path": str(file)})
        except SecateurError as error:
            if len(files) * len(specs) == 1:
                raise
            refused.append({"path": str(file), "runtime": spec, "refused": str(error)})
    if as_json:
        print(json.dumps([*records, *refused], indent=2, allow_nan=False))
    else:
        from secateur.reporting.console import measurements

        out.print(measurements([*records, *refused]))
    if loaded is not None:
        tell_notes(loaded, "test")
    if refused:
        raise typer.Exit(1)
