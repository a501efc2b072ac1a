"""A run that is killed again and again, resumed each time: the final weights are those of one that never was.

Each life is a process of its own, ended by SIGKILL at a random moment: while it starts, compiles, trains or writes its
checkpoint. Expect every checkpoint to be readable and the final weights to be equal bit for bit (same machine, versions
and number of devices).
"""

import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import files

LIFE = """
import sys, jax, optax
jax.config.update("jax_compilation_cache_dir", sys.argv[1] + "/compiled")
import jaxmlp as jm
from experiments import datasets

folder, epochs, examples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pictures = datasets.load("mnist")
net = jm.MLP((784, 64, 32, 10), output="softmax", loss="cross_entropy")
result = jm.fit(
    net, jm.init(net, jax.random.key(0)), (pictures.X[:examples], pictures.Y[:examples]),
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, epochs * -(-examples // 64))), epochs=epochs,
    batch_size=64, key=jax.random.key(1), preprocess=jm.data.scale_pixels, keep=0.9, average=0.99, monitor=True,
    validation=(pictures.X_test[:1000], pictures.Y_test[:1000]), checkpoints=folder, log=folder + "/log.jsonl",
    progress=False,
)
jm.save(folder + "/final.safetensors", net, result.last_params)
"""


@dataclass(frozen=True)
class Settings:
    kills: int = 20
    epochs: int = 400
    examples: int = 2000
    seed: int = 0  # of the moments
    quick: bool = False  # 2 kills, a tenth of the epochs


def run(settings: Settings, out: Output) -> dict[str, float]:
    if min(settings.kills, settings.epochs, settings.examples) < 1:
        raise ValueError(f"kills, epochs and examples are {settings.kills}, {settings.epochs}, {settings.examples}; "
                         "expected at least 1 of each")  # fmt: skip
    datasets.load("mnist")
    kills, epochs = (2, settings.epochs // 10) if settings.quick else (settings.kills, settings.epochs)
    with TemporaryDirectory() as whole, TemporaryDirectory() as broken:
        began, life = time.perf_counter(), _life(whole, epochs, settings.examples)
        while not (Path(whole) / "last.safetensors").exists() and life.poll() is None:
            time.sleep(0.02)
        start_up = time.perf_counter() - began
        _finished(life)
        longest = 2 * start_up + 2 * (time.perf_counter() - began - start_up) / kills
        moments, rows, same = random.Random(settings.seed), [], True
        while sum(row["end"] == "killed" for row in rows) < kills:
            life, moment = _life(broken, epochs, settings.examples), moments.uniform(0, longest)
            try:
                _finished(life, timeout=moment)
                end = "finished"
            except subprocess.TimeoutExpired:
                life.kill()
                life.wait()
                end = "killed"
            rows.append({"life": str(len(rows) + 1), "seconds": f"{moment:.2f}",
                         "epochs saved": str(_epochs_saved(Path(broken))), "end": end})  # fmt: skip
            if end == "finished":  # before its time: another run
                same &= _same(whole, broken)
                for path in Path(broken).glob("*.*"):
                    path.unlink()
        _finished(_life(broken, epochs, settings.examples))
        same &= _same(whole, broken)
    out.table(f"{kills} kills of a run of {epochs} epochs", rows)
    out.say(f"final weights after the kills: {'bit-identical' if same else 'DIFFERENT'}")
    out.close()
    return {"identical": float(same), "kills": float(kills)}


def _life(folder: str, epochs: int, examples: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", LIFE, folder, str(epochs), str(examples)])


def _finished(life: subprocess.Popen, timeout: float | None = None) -> None:
    if life.wait(timeout):
        raise RuntimeError(f"a life ended with status {life.returncode}: see above")


def _epochs_saved(folder: Path) -> int:
    """Of the checkpoint that the next life will find: it must be readable."""
    path = folder / "last.safetensors"
    return 0 if not path.exists() else len(files.read(path, "tree")[1]["about"]["history"].get("epoch", []))


def _same(whole: str, broken: str) -> bool:
    final = [jm.load(Path(folder) / "final.safetensors")[1] for folder in (whole, broken)]
    return all(np.array_equal(a, b) for one, other in zip(*final, strict=True) for a, b in zip(one, other, strict=True))
