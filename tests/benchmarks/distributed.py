"""The network's training by one and by two processes, and on GPUs where there are any: speed as a ratio, and how far the weights lie apart.

`python tests/benchmarks/distributed.py` writes the section `distributed` of RESULTS.md. Each measurement is a torchrun of its own, after
two epochs that are not counted; CPU seconds are those of all processes. With CUDA it also measures one GPU in 32 and in mixed bf16.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from results import table, write
from safetensors.numpy import load_file

from components.models import fusion_training
from components.models.fusion import Settings
from components.tensors import Training, folds

ROWS, F, K, EPOCHS = 20_000, 60, 4, 3
CASES = {"as shipped": (32, 256), "large batches": (32, 4096), "wide, large batches": (256, 4096)}  # width, rows a batch
MARK = "measured "


def rows() -> Training:
    """Noise with one effect: what is measured does not depend on it."""
    rng = np.random.default_rng(0)
    x_NF, option_N = rng.normal(size=(ROWS, F)), rng.integers(0, K, ROWS)
    modality_F = ("history",) * 40 + ("genomics",) * 12 + ("lifestyle",) * 8
    return Training(
        x_NF=x_NF,
        names=tuple(f"f{f}" for f in range(F)),
        modality_F=modality_F,
        options=K,
        targets=K,
        option_N=option_N,
        target_N=x_NF[:, 0] * option_N + rng.normal(size=ROWS),
        fold_N=folds(ROWS),
    )


def measure(case: str, accelerator: str, precision: str, out: Path) -> None:
    """What every process does; the first one keeps the ensemble."""
    width, batch = CASES[case]
    processes, data = int(os.environ["WORLD_SIZE"]), rows()
    told = {"accelerator": accelerator, "devices": processes, "precision": precision}
    fusion_training.fit(data, Settings(width=width, batch=batch, epochs=2), **told)  # type: ignore[arg-type]
    wall, cpu = time.perf_counter(), time.process_time()
    made = fusion_training.fit(data, Settings(width=width, batch=batch, epochs=EPOCHS), **told)  # type: ignore[arg-type]
    print(MARK + json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)
    if os.environ["RANK"] == "0":
        made.save(out)


def measured(case: str, processes: int, accelerator: str, precision: str, out: Path) -> tuple[float, float]:
    """Wall seconds, CPU seconds of all processes."""
    out.mkdir()
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d"]
    command = [*torchrun, "--rdzv-endpoint=127.0.0.1:0", __file__, case, accelerator, precision, str(out)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True, timeout=900)
    told = [json.loads(line.split(MARK)[1]) for line in done.stdout.splitlines() if MARK in line]
    assert len(told) == processes, done.stdout
    return max(each["wall"] for each in told), sum(each["cpu"] for each in told)


def main() -> None:
    """Every case on every machine there is."""
    machines = [("1 process", 1, "cpu", "32-true"), ("2 processes, gloo", 2, "cpu", "32-true")]
    if torch.cuda.is_available():
        machines += [("1 GPU", 1, "gpu", "32-true"), ("1 GPU, bf16", 1, "gpu", "bf16-mixed")]
    lines = []
    with tempfile.TemporaryDirectory() as home:
        for number, case in enumerate(CASES):
            first = (0.0, 0.0)
            for name, processes, accelerator, precision in machines:
                out = Path(home) / f"{number}{name}"
                wall, cpu = measured(case, processes, accelerator, precision, out)
                first = first if first[0] else (wall, cpu)
                one, other = (load_file(place / "fusion.safetensors") for place in (Path(home) / f"{number}1 process", out))
                apart = max(float(np.abs(one[each] - other[each]).max()) for each in one if each.startswith("network."))
                speed = f"{ROWS * EPOCHS / wall:,.0f}"
                lines.append((case, name, speed, f"{first[0] / wall:.2f}", f"{cpu / first[1]:.2f}", f"{apart:.1e}"))
    columns = (
        "network and batches",
        "on",
        "rows a second",
        "speed against 1 process",
        "CPU time against 1 process",
        "largest difference of a weight",
    )
    cases = "; ".join(f"{case}: width {width}, {batch:,} rows a batch" for case, (width, batch) in CASES.items())
    text = table("### One process and two", columns, lines) + f"\n{ROWS:,} rows of {F} features, {EPOCHS} epochs; {cases}.\n"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: GPUs and bf16 were not measured"
    text += f"Processors: {os.cpu_count()}, load {os.getloadavg()[0]:.1f} at the end. GPU: {gpu}."
    write("distributed", "Training by several processes", "python tests/benchmarks/distributed.py", text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    else:
        main()
