"""Write speech.md and the card of the shipped weights from the kept results: python docs/results/speech.py [--check].

benchmarks/speech.py writes speech/shipped.json and speech/segments.json, benchmarks/ship_enhancer.py the training.json
of the run whose weights are shipped, benchmarks/mambattention.py the speed; published.json is from publications.
"""

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE, NOTES = HERE / "speech", HERE / "speech.md", HERE / "speech-notes.md"
CARDS = HERE.parents[1] / "seqattn" / "weights"
SPEED = HERE.parents[1] / "benchmarks" / "results" / "mambattention-cpu.json"
NAMES = {
    "pesq": "PESQ", "estoi": "ESTOI", "stoi": "STOI", "si_sdr": "SI-SDR, dB", "ssnr": "SSNR, dB", "csig": "CSIG",
    "cbak": "CBAK", "covl": "COVL",
}  # fmt: skip
COMPOSITES = ("csig", "cbak", "covl")
CLEAN = "28 minutes of clean speech (short commands of many speakers, and one reader)"
PUBLISHED = {"parameters": 2_325_841, "steps": 542_000, "clips": 8, "seconds": 2.0}  # arXiv:2507.00966 and its code
Report = dict[str, Any]


def read(name: str) -> Report:
    return json.loads((RESULTS / f"{name}.json").read_text())


def paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False), ""]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def cell(entry: Report) -> str:
    return f"{entry['mean']:.3f} ± {entry['half_width']:.3f}"


def shipped_lines(shipped: Report) -> list[str]:
    rows = []
    for scale in ("int16", "float"):
        for name, title in NAMES.items():
            if name in COMPOSITES:
                title = f"{title}, {scale} scale"
            elif scale == "float":
                continue
            rows.append([title, *(cell(shipped[scale][signal][name]) for signal in ("noisy", "enhanced"))])
    return [
        f"## The shipped weights, {shipped['parameters']:,} parameters",
        "",
        *paragraph(
            f"On the {shipped['int16']['files']} real pairs of `{shipped['pairs']}` (speakers p232 and p257 of the "
            "VoiceBank+DEMAND test set; pairs that papers posted as demonstrations, so that the figures do not compare "
            "with those of all 824 utterances). None of these speakers, noises or recordings was trained or selected "
            "on. Mean and 95 % interval."
        ),
        *table(["measure", "noisy", "enhanced"], rows),
        *paragraph(
            "The composites depend on the scale of the samples inside WSS: int16 is what the measure was made for, the "
            "float scale is what most published tables of enhanced speech used, which flatters them by about 0.08."
        ),
    ]


def training_lines(training: Report) -> list[str]:
    found = training["validation"]
    minutes, epoch, low, high = training["seconds"] / 60, training["best_epoch"], *training["data"]["snr_range"]
    return paragraph(
        f"They are epoch {epoch} of {training['epochs']} of `configs/speech/{training['config']}.yaml` "
        f"({training['protocol']} protocol: {training['selection']}), {minutes:.0f} minutes on {training['threads']} "
        f"CPU thread(s), on {CLEAN} mixed on the fly with 17 minutes of noise at {low:g} to {high:g} dB. On held-out "
        f"speakers and noises: PESQ {found['val_pesq']:.2f}, SI-SDR {found['val_si_sdr']:.1f} dB. It is not the "
        f"published network: 1/{PUBLISHED['parameters'] / training['parameters']:.0f} of its parameters, "
        f"{training['data']['steps']:,} steps instead of {PUBLISHED['steps']:,}, "
        f"1/{_published_audio(training):,.0f} of the audio, no metric discriminator."
    )


def _published_audio(training: Report) -> float:
    """How many times as much audio the published network was trained on."""
    data = training["data"]
    published = PUBLISHED["steps"] * PUBLISHED["clips"] * PUBLISHED["seconds"]
    return published / (data["steps"] * data["batch_size"] * data["seconds_of_clip"])


def published_lines(published: Report) -> list[str]:
    lines = [
        "## Published figures",
        "",
        *paragraph("For orientation; composites of enhanced speech are at the float scale."),
    ]
    for entry in published.values():
        rows = [
            [row["model"], row.get("parameters", "–"), *("–" if x is None else f"{x:g}" for x in row["values"])]
            for row in entry["rows"]
        ]
        head = ["model", "parameters", *(NAMES[name] for name in entry["columns"])]
        lines += [f"### {entry['title']}", "", *table(head, rows)]
    return lines


def segment_lines(report: Report) -> list[str]:
    shipped, published = report["files"]["shipped"], report["files"]["published"]
    head = ["segment, s", "context, s", "joins", "SI-SDR to the whole, dB", "bends at joins (whole)", "level step, dB"]
    rows = [
        [
            f"{row['segment']:g}", f"{row['context']:g}", f"{row['joins']}", f"{row['si_sdr_to_whole']:.1f}",
            f"{row['roughness']:.2f} ({row['roughness_of_whole']:.2f})", f"{row['level_step_db']:.2f}",
        ]
        for row in report["rows"]
    ]  # fmt: skip
    return [
        "## Long recordings",
        "",
        *paragraph(
            "The network looks at the whole of what it is given, so a recording that is enhanced in segments differs "
            f"from one that is enhanced whole. Measured on {report['seconds']} s of real noisy speech with the shipped "
            "weights, one gain for the whole file, 50 ms of cross-fade at a join. Bends are the mean second difference "
            "over the 50 ms of a join, over that of the whole recording; in brackets the same places of the output "
            "without joins. The level step is the largest change of level across a join, against the whole."
        ),
        *table(head, rows),
        *paragraph(
            f"A file of {shipped['seconds'] / 60:.0f} minutes takes {shipped['real_time_factor']:.2f} s a second of "
            f"audio and a process of at most {shipped['peak_bytes_of_process'] / 2**30:.2f} GiB, program included; a "
            f"network of the published size {published['real_time_factor']:.1f} s a second and "
            f"{published['peak_bytes_of_process'] / 2**30:.2f} GiB, at any length ({report['machine']})."
        ),
        "![likeness to the whole against context](figures/speech-segments.png)",
        "",
    ]


def speed_lines(report: Report) -> list[str]:
    rows = [
        [f"{clip['seconds']:g} s", part, *(f"{clip[part][key]:.2f}" for key in ("plain", "ours", "ratio"))]
        for clip in report["clips"]
        for part in ("forward", "forward + backward")
    ]
    peaks = {name: peak / 2**30 for name, peak in report["peak_bytes"].items()}
    longest = max(clip["seconds"] for clip in report["clips"])
    plain = f" The plain one needs {peaks['plain']:.2f} GiB." if "plain" in peaks else ""
    return [
        "## Speed of the published network",
        "",
        *paragraph(f"Against a plain transcription of the publication, both exact; {report['machine']}."),
        *table(["audio", "pass", "plain, s", "ours, s", "ratio"], rows),
        *paragraph(
            f"A training step of one clip of {longest:g} s needs {peaks['ours']:.2f} GiB beside the program.{plain}"
        ),
        *paragraph(
            "The plain one computes its scans again in the backward pass, as the published kernel does; ours keeps "
            "their results and computes convolutions and step sizes again. Bars: 3.5 and 5 times as fast, and 4 GB."
        ),
    ]


def card(shipped: Report, training: Report) -> str:
    """What is written beside the weights."""
    means, data = shipped["int16"], training["data"]
    rows = [
        [NAMES[name], *(f"{means[signal][name]['mean']:.3f}" for signal in ("noisy", "enhanced"))]
        for name in ("pesq", "estoi", "si_sdr", "ssnr", "csig", "cbak", "covl")
    ]
    return "\n".join([
        f"# {shipped['weights']}", "",
        *paragraph(
            f"A MambAttention of {shipped['parameters']:,} parameters for single-channel speech at 16 kHz, in float16; "
            "what `seqattn enhance` uses unless a run is named. `docs/results/speech.md` says how far it is from the "
            "published network."
        ),
        "## Data", "",
        *paragraph(
            "Clean speech: 300 crowd-sourced commands (Picovoice speech-to-intent benchmark, Apache-2.0) and 98 "
            "utterances of LJSpeech (public domain), 28 minutes. Noise: 8 recordings of MS-SNSD (CC0, CC BY, CC BY-SA "
            "3.0), a kitchen (Picovoice, Apache-2.0) and 96 clips of ESC-10 (CC BY 3.0), 17 minutes. Mixed on the fly "
            "at -5 to 15 dB; speakers and noises held out for validation."
        ),
        "## Training", "",
        *paragraph(
            f"`configs/speech/{training['config']}.yaml`, seed {training['seed']}: {training['seconds'] / 60:.0f} "
            f"minutes on {training['threads']} CPU thread(s). Epoch {training['best_epoch']} of {training['epochs']} "
            f"was the best by validation PESQ, after {data['steps']:,} steps of {data['batch_size']} clips of "
            f"{data['seconds_of_clip']:g} s."
        ),
        "## Measures", "",
        *paragraph(
            f"On {means['files']} real pairs of the VoiceBank+DEMAND test set, not used for training or selection "
            "(composites at the int16 scale):"
        ),
        *table(["measure", "noisy", "enhanced"], rows),
        "## Limits", "",
        *paragraph(
            "English read speech and short commands at close range; no reverberation, no music, few kinds of noise. "
            "Loud noise leaves audible remains. What lies above 8 kHz in a recording of a higher rate is lost. "
            "Not for forensic or medical use."
        ),
        "## Licence", "",
        *paragraph("Apache-2.0, as the code; the data keep theirs."),
    ])  # fmt: skip


def page() -> str:
    lines = [
        "# Speech enhancement",
        "",
        *paragraph("Generated by `docs/results/speech.py` from the files in `docs/results/speech/`."),
        *shipped_lines(read("shipped")),
        *training_lines(read("training")),
        *published_lines(read("published")),
        *segment_lines(read("segments")),
        *speed_lines(json.loads(SPEED.read_text())),
        *([NOTES.read_text().strip(), ""] if NOTES.exists() else []),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a page is not what would be written")
    shipped = read("shipped")
    written = {PAGE: page(), CARDS / f"{shipped['weights']}.md": card(shipped, read("training"))}
    if parser.parse_args().check:
        sys.exit(any(file.read_text() != text for file, text in written.items()))
    for file, text in written.items():
        file.write_text(text)


if __name__ == "__main__":
    main()
