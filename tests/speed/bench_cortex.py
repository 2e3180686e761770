"""The exported program on an emulated Cortex-M4: instructions of every operation, flash and RAM, at several bit widths.

The emulator counts instructions exactly and the same every time, but not clock cycles. A multiply-accumulate is counted where it is
made: a transposed layer multiplies each input by each weight once.
"""

import tempfile
from pathlib import Path

from qatcourse.viz import table

# Instructions a multiply-accumulate of CMSIS-NN's convolution wrappers on this course's former pose network (36.6 million), in the
# same emulator with the same compiler, 8 and 4 bits; measured once, its sources are not part of this project.
CMSIS_NN = {8: 2.23, 4: 3.50}


def measured(model) -> dict:
    """Of a compact model: `operations` (name: instructions, macs), `instructions`, `macs`, `flash`, `ram`; `said` by its test."""
    from qatlib.export import cortex_m4, export_c

    with tempfile.TemporaryDirectory() as temporary:
        folder = export_c(model, Path(temporary) / "net", target="cortex-m4")
        (flash, ram), counts, made = cortex_m4.sizes(folder), cortex_m4.layers(folder), cortex_m4.products(model)
        said = cortex_m4.make(folder, "check").splitlines()
    rows = zip((op["name"] for op in model.ops), counts, made, strict=True)
    operations = {name: {"instructions": n, "macs": products} for name, n, products in rows}
    return {"operations": operations, "instructions": sum(counts), "macs": sum(made), "flash": flash, "ram": ram, "said": said}


def cortex() -> dict[str, dict]:
    """By bit widths: `measured` PoseTiny with the course's weights; or why nothing was."""
    from bench_engines import networks

    from qatlib.export import cortex_m4
    from qatlib.integer.source import as_compact

    if problem := cortex_m4.missing():
        return {"missing": problem}
    named = {name.removeprefix("PoseTiny, "): pair[1] for name, pair in networks(True).items() if name.startswith("PoseTiny")}
    return {bits: measured(as_compact(network)) for bits, network in named.items()}


def print_cortex(result: dict) -> None:
    if "missing" in result:
        print(f"\nCortex-M4: not measured: {result['missing']}")
        return
    first = next(iter(result.values()))
    rows = []
    for name, one in first["operations"].items():
        pace = {bits: part["operations"][name]["instructions"] for bits, part in result.items()}
        made = one["macs"]
        shown = {bits: f"{n / made:.3f}" if made else f"{n:,}" for bits, n in pace.items()}
        rows.append({"operation": name, "multiply-accumulates": f"{made:,}"} | shown)
    whole = {bits: f"{part['instructions'] / part['macs']:.3f}" for bits, part in result.items()}
    rows.append({"operation": "all", "multiply-accumulates": f"{first['macs']:,}"} | whole)
    other = {bits: f"{CMSIS_NN[int(bits.split()[0])]:.2f}" if bits in ("8 bits", "4 bits") else "" for bits in result}
    rows.append({"operation": "CMSIS-NN", "multiply-accumulates": "(former network)"} | other)
    for key in ("instructions", "flash", "ram"):
        rows.append({"operation": key, "multiply-accumulates": ""} | {bits: f"{part[key]:,}" for bits, part in result.items()})
    print("\nCortex-M4 in QEMU: instructions a multiply-accumulate (of sums: instructions)")
    print(table(rows))
    print("\n".join(f"{bits}: {'; '.join(part['said'])}" for bits, part in result.items()))
