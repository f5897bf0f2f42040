"""Make a run's network the shipped speech enhancer: python benchmarks/ship_enhancer.py RUN [--name NAME]

Writes seqattn/weights/NAME.safetensors (float16, with the constructor's options) and docs/results/speech/training.json.
"""

import argparse
import json
from pathlib import Path

from seqattn.experiment.run_directory import RunDirectory, atomic_write, atomic_write_text
from seqattn.experiment.speech import load_module
from seqattn.experiment.speech_config import SpeechConfig
from seqattn.models.pretrained import DEFAULT, WEIGHTS, pack_weights

TRAINING = Path(__file__).parents[1] / "docs" / "results" / "speech" / "training.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default=DEFAULT)
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.run)
    module = load_module(run)
    packed = pack_weights(module.network, module.hparams["model_options"])
    atomic_write(WEIGHTS / f"{arguments.name}.safetensors", lambda file: file.write(packed))
    data = run.read_config(SpeechConfig).data
    results = run.read_results()
    results["data"] = {
        "batch_size": data.batch_size,
        "steps": results["best_epoch"] * -(-(data.epoch_size or 0) // data.batch_size),
        "seconds_of_clip": data.segment / 16_000,
        "snr_range": list(data.snr_range),
    }
    for name in ("test", "tests"):
        results.pop(name, None)
    atomic_write_text(TRAINING, json.dumps(results, indent=1) + "\n")
    print(f"{arguments.name}: {len(packed):,} bytes, {module.num_parameters:,} parameters")


if __name__ == "__main__":
    main()
