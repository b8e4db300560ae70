"""The commands about files: write them in every format, measure those that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli_options import (
    DataOption,
    ImageSizeOption,
    ImportOption,
    LayerOption,
    ScaleOption,
    as_image_size,
    as_layers,
    as_scale,
    frameworks,
    import_all,
    out,
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
        from secateur.measurement import measure as measure_file
        from secateur.runtimes.keras import load_model
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
    loaded = load_model(model) if found is None else found.model
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
        calibration=_calibration(calibrated_on),
        data=_samples(measured_on or calibrated_on),
        imports=tuple(imports or ()),
        io="float" if float_io else "int",
        allow_float=allow_float,
        strip=stripped,
        header=c_array,
        layers=layers,
    )
    add_to_manifest(folder, artifacts)
    from secateur.reporting.console import measurements

    records = []
    for artifact in artifacts:
        measured = measure_file(artifact.path, measured_on)
        require_same(artifact)
        records.append({**measured.to_record(), "path": str(artifact.path)})
    out.print(measurements(records))
    for artifact in artifacts:
        out.print(
            f"{artifact.path}: reloaded and run; outputs differ from the model's by "
            f"{artifact.parity['relative_rms']:.1e} (relative RMS), the same answer for "
            f"{100 * artifact.parity['agreement']:.1f} % of {artifact.parity['n']} samples",
            highlight=False,
            soft_wrap=True,
        )
    for text in [text for artifact in artifacts for text in artifact.notes]:
        out.print(text, highlight=False, soft_wrap=True)


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
    from secateur.runtimes import runtime as runtime_named

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
            measured = measure_file(file, loaded, threads=threads, runtime=spec)
            records.append({**measured.to_record(), "path": str(file)})
        except SecateurError as error:
            if len(files) * len(specs) == 1:
                raise
            refused.append({"path": str(file), "runtime": spec, "refused": str(error)})
    if as_json:
        print(json.dumps([*records, *refused], indent=2))
    else:
        from secateur.reporting.console import measurements

        out.print(measurements([*records, *refused]))
    if refused:
        raise typer.Exit(1)


def _calibration(data: Any) -> Any:
    if data is None:
        return None
    split = data.calibration or data.test
    return None if split is None else split.x


def _samples(data: Any) -> Any:
    if data is None:
        return None
    split = data.validation or data.train or data.test
    return None if split is None else split.x[:500]
