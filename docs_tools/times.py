"""The times of layers, as a table."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).parent.parent / "benchmarks" / "results" / "layers-cpu.json"


def layers() -> str:
    """Return the table of a run of `benchmarks/layers.py`."""
    evidence = json.loads(FILE.read_text(encoding="utf-8"))
    where = evidence["environment"]
    lines = [
        "| layer | input | torch, ms | on kernels | first principles | peak, MiB | torch's |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in evidence["layers"]:
        times = f"{1e3 * row['torch']:.2f} | {row['kernels'] / row['torch']:.2f} | "
        times += f"{row['first_principles'] / row['torch']:.2f}"
        memory = f"{row['peak'] / 2**20:.1f} | {row['torch_peak'] / 2**20:.1f}"
        lines.append(f"| `{row['layer']}` | {' × '.join(map(str, row['shape']))} | {times} | {memory} |")
    lines += [
        "",
        f"Forward and backward, measured with torch {where['torch']} on {where['device_name']}, "
        f"{where['threads']} threads, {where['date'][:10]}: torch's time, and ours as a multiple of it.",
    ]
    return "\n".join(lines)
