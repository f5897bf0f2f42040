"""Write speech.md from the kept results: python docs/results/speech.py [--check].

benchmarks/speech.py writes speech/shipped.json and speech/segments.json, benchmarks/mambattention.py the speed; speech/training.json is
the results.json of the run whose weights are shipped, and speech/published.json holds figures from publications.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE, NOTES = HERE / "speech", HERE / "speech.md", HERE / "speech-notes.md"
SPEED = HERE.parents[1] / "benchmarks" / "results" / "mambattention-cpu.json"
NAMES = {
    "pesq": "PESQ", "estoi": "ESTOI", "stoi": "STOI", "si_sdr": "SI-SDR, dB", "ssnr": "SSNR, dB", "csig": "CSIG",
    "cbak": "CBAK", "covl": "COVL",
}  # fmt: skip
COMPOSITES = ("csig", "cbak", "covl")


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def cell(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:.3f} ± {entry['half_width']:.3f}"


def shipped_lines(shipped: dict[str, Any]) -> list[str]:
    measured = shipped["int16"]
    lines = [
        f"## The shipped weights, {shipped['parameters']:,} parameters",
        "",
        f"On the {measured['files']} real pairs of `{shipped['pairs']}` (speakers p232 and p257 of the VoiceBank+DEMAND test",
        "set; pairs that papers posted as demonstrations, so that the figures do not compare with those of all 824",
        "utterances). None of these speakers, noises or recordings was trained or selected on. Mean and 95 % interval.",
        "",
        "| measure | noisy | enhanced |",
        "|---|---|---|",
    ]
    for name, title in NAMES.items():
        scale = ", int16 scale" if name in COMPOSITES else ""
        lines.append(f"| {title}{scale} | {cell(measured['noisy'][name])} | {cell(measured['enhanced'][name])} |")
    for name in COMPOSITES:
        entries = (shipped["float"][signal][name] for signal in ("noisy", "enhanced"))
        lines.append(f"| {NAMES[name]}, float scale | " + " | ".join(map(cell, entries)) + " |")
    return [
        *lines, "",
        "The composites depend on the scale of the samples inside WSS: int16 is what the measure was made for, the float",
        "scale is what most published tables of enhanced speech used, which flatters them by about 0.08.", "",
    ]  # fmt: skip


def training_lines(training: dict[str, Any]) -> list[str]:
    validation = training["validation"]
    return [
        f"They are epoch {training['best_epoch']} of {training['epochs']} of `configs/speech/{training['config']}.yaml`",
        f"({training['protocol']} protocol: {training['selection']}), {training['seconds'] / 60:.0f} minutes on",
        f"{training['threads']} thread(s), on 28 minutes of clean speech (short commands of many speakers, and one reader)",
        "mixed on the fly with 17 minutes of noise at -5 to 15 dB. On held-out speakers and noises: PESQ",
        f"{validation['val_pesq']:.2f}, SI-SDR {validation['val_si_sdr']:.1f} dB. Not the published network: a tenth of",
        "its parameters, a thousandth of its training, no metric discriminator.",
        "",
    ]


def published_lines(table: dict[str, Any]) -> list[str]:
    lines = [
        f"### {table['title']}",
        "",
        "| model | parameters | " + " | ".join(NAMES[name] for name in table["columns"]) + " |",
        "|" + "---|" * (2 + len(table["columns"])),
    ]
    for row in table["rows"]:
        values = " | ".join("–" if value is None else f"{value:g}" for value in row["values"])
        lines.append(f"| {row['model']} | {row.get('parameters', '–')} | {values} |")
    return [*lines, ""]


def segment_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        "## Long recordings",
        "",
        "The network looks at the whole of what it is given, so a recording that is enhanced in segments differs from one",
        f"that is enhanced whole. Measured on {report['seconds']} s of real noisy speech with the shipped weights, one gain for the",
        "whole file, 50 ms of cross-fade at a join:",
        "",
        "| segment, s | context, s | joins | SI-SDR to the whole, dB | bends at joins (whole file) | largest step of level, dB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        bends = f"{row['roughness']:.2f} ({row['roughness_of_whole']:.2f})"
        lines.append(
            f"| {row['segment']:g} | {row['context']:g} | {row['joins']} | {row['si_sdr_to_whole']:.1f} | {bends} "
            f"| {row['level_step_db']:.2f} |"
        )
    long_file = report["long_file"]
    return [
        *lines, "",
        "Bends are the mean second difference over the 50 ms of a join, over that of the whole recording; in brackets the",
        "same places of the output that has no joins.",
        "",
        f"A file of {long_file['seconds'] / 60:.0f} minutes takes {long_file['real_time_factor']:.2f} s a second of audio and",
        f"a process of at most {long_file['peak_bytes_of_process'] / 2**30:.2f} GiB, program included ({report['machine']}).",
        "",
        "![likeness to the whole against context](figures/speech-segments.png)",
        "",
    ]  # fmt: skip


def speed_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        "## Speed of the published network",
        "",
        f"Against a plain transcription of the publication, both exact; {report['machine']}.",
        "",
        "| audio | pass | plain, s | ours, s | ratio |",
        "|---|---|---|---|---|",
    ]
    for clip in report["clips"]:
        for part in ("forward", "forward + backward"):
            entry = clip[part]
            lines.append(
                f"| {clip['seconds']:g} s | {part} | {entry['plain']:.2f} | {entry['ours']:.2f} | {entry['ratio']:.1f} |"
            )
    peaks = report["peak_bytes"]
    return [
        *lines, "",
        f"A training step of one clip of 2 s needs {peaks['ours'] / 2**30:.2f} GiB beside the program, the plain one",
        f"{peaks['plain'] / 2**30:.2f} GiB although its scans are computed again in the backward pass.", "",
    ]  # fmt: skip


def page() -> str:
    published = read("published")
    lines = [
        "# Speech enhancement",
        "",
        "Generated by `docs/results/speech.py` from the files in `docs/results/speech/`.",
        "",
        *shipped_lines(read("shipped")),
        *training_lines(read("training")),
        "## Published figures",
        "",
        "For orientation; composites at the float scale where the speech is enhanced.",
        "",
        *(line for table in published.values() for line in published_lines(table)),
        *segment_lines(read("segments")),
        *(speed_lines(json.loads(SPEED.read_text())) if SPEED.is_file() else []),
        *([NOTES.read_text().strip(), ""] if NOTES.exists() else []),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if speech.md is not what would be written")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
