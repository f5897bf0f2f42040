"""Write speed.md and interpretability.md from the JSON of the benchmarks: python docs/results/mptsnet.py [--check].

python benchmarks/mptsnet.py --json benchmarks/results/mptsnet-cpu.json
python benchmarks/mptsnet_deletion.py RUN --json benchmarks/results/mptsnet-deletion.json \
        --figure docs/results/figures/deletion.png
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
BARS = {"forward": 5, "forward + backward": 6}
RESULTS = HERE.parents[1] / "benchmarks" / "results"


def speed() -> str:
    report = json.loads((RESULTS / "mptsnet-cpu.json").read_text())
    lines = [
        "# MPTSNet: speed",
        "",
        "`benchmarks/mptsnet.py` times our network against a plain transcription of the publication (six",
        "convolutions, a Python loop over segments), with the same weights; their logits are compared first. Medians",
        f"of runs taken in turns. {report['machine']}, batch {report['batch']}, float32.",
        "",
        "| data | logit difference / largest | part | plain, s | ours, s | ratio | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in report["cases"].items():
        for part in ("forward", "forward + backward"):
            times = case[part]
            lines.append(
                f"| {name} | {case['logit_difference']:.0e} | {part} | {times['plain']:.3f} | {times['ours']:.3f} "
                f"| {times['ratio']:.1f}× | {BARS[part]}×, {'met' if times['ratio'] >= BARS[part] else 'MISSED'} |"
            )
    return "\n".join([*lines, ""])


def interpretability() -> str:
    report = json.loads((RESULTS / "mptsnet-deletion.json").read_text())
    areas, (low, high) = report["area"], report["random_area_range"]
    salient, random = areas["most salient first"], areas["random"]
    if salient < low:
        verdict = (
            "Deleting the steps that the period attention marks costs more than any random draw did: here the saliency "
            "points at steps the network uses."
        )
    elif salient > high:
        verdict = "Deleting the marked steps costs less than any random draw did: here the saliency misleads."
    else:
        verdict = "Deleting the marked steps costs no more than random draws do: here the saliency explains nothing."
    lines = [
        "# MPTSNet: does the explanation point at what matters?",
        "",
        "The publication offers its period attention as an explanation, without a measurement. "
        "`benchmarks/mptsnet_deletion.py` makes one: steps are deleted (all channels, as missing values) from the most "
        "salient on, from the least salient on, and at random, and the probability of the class predicted on the whole "
        f"series is followed. {report['dataset']}, TEST ({report['cases']} cases), configuration `{report['config']}`, "
        f"seed {report['seed']}, {report['draws']} random draws.",
        "",
        "| order of deletion | area under the probability curve | accuracy with half the steps deleted |",
        "|---|---|---|",
    ]
    half = report["shares"].index(0.5)
    for name, curve in report["curves"].items():
        lines.append(f"| {name} | {areas[name]:.3f} | {100 * curve['accuracy'][half]:.1f} % |")
    lines += [
        "",
        f"Random draws lie between {low:.3f} and {high:.3f}; most salient first, {salient - random:+.3f} against their "
        f"mean. {verdict} One data set and one trained network: no claim beyond them.",
        "",
        "![deletion curves](figures/deletion.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a page is not what would be written")
    pages = {HERE / "speed.md": speed(), HERE / "interpretability.md": interpretability()}
    if parser.parse_args().check:
        sys.exit(any(path.read_text() != text for path, text in pages.items()))
    for path, text in pages.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
