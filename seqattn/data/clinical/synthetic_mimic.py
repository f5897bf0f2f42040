"""Invented patients in the folders of mimic3-benchmarks, with labels that neither series nor notes tell alone."""

import csv
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from seqattn.data.clinical.mimic3_variables import VARIABLES

PHENOTYPES = (
    "Acute and unspecified renal failure", "Acute cerebrovascular disease", "Acute myocardial infarction",
    "Cardiac dysrhythmias", "Chronic kidney disease", "Chronic obstructive pulmonary disease and bronchiectasis",
    "Complications of surgical procedures or medical care", "Conduction disorders",
    "Congestive heart failure; nonhypertensive", "Coronary atherosclerosis and other heart disease",
    "Diabetes mellitus with complications", "Diabetes mellitus without complication", "Disorders of lipid metabolism",
    "Essential hypertension", "Fluid and electrolyte disorders", "Gastrointestinal hemorrhage",
    "Hypertension with complications and secondary hypertension", "Other liver diseases",
    "Other lower respiratory disease", "Other upper respiratory disease",
    "Pleurisy; pneumothorax; pulmonary collapse", "Pneumonia (except that caused by tuberculosis)",
    "Respiratory failure; insufficiency; arrest (adult)", "Septicemia (except in labor)", "Shock",
)  # fmt: skip
LATE = "autopsy was requested by the family"  # in a note after the window of every patient who dies, and in no other
_EPOCH = datetime(2130, 1, 1)
_HEADER = ",".join(["Hours", *(variable.name for variable in VARIABLES)])
# normal value, spread within a patient, shift by the latent severity, chance of being in a row
_BEHAVIOUR = {
    "Capillary refill rate": (0, 0, 0, 0.05), "Diastolic blood pressure": (60, 8, -4, 0.8),
    "Fraction inspired oxygen": (0.4, 0.05, 0, 0.1), "Glascow coma scale total": (13, 1, 0, 0.2),
    "Glucose": (130, 25, 0, 0.2), "Heart Rate": (86, 8, 8, 0.9), "Height": (170, 0, 0, 0.02),
    "Mean blood pressure": (77, 8, -5, 0.8), "Oxygen saturation": (97, 1.5, 0, 0.9),
    "Respiratory rate": (19, 3, 2, 0.9), "Systolic blood pressure": (118, 12, -8, 0.8),
    "Temperature": (37, 0.4, 0, 0.3), "Weight": (81, 0.5, 0, 0.05), "pH": (7.39, 0.04, 0, 0.1),
}  # fmt: skip
_TEXTS = {
    "Glascow coma scale eye opening": ("4 Spontaneously", "Spontaneously", "To Speech", "None"),
    "Glascow coma scale motor response": ("6 Obeys Commands", "Obeys Commands", "Localizes Pain"),
    "Glascow coma scale verbal response": ("5 Oriented", "Oriented", "Confused", "1.0 ET/Trach"),
}
_NEUTRAL = (
    "patient seen on rounds", "lines in place", "family at bedside", "medication given as ordered",
    "turned every two hours", "chest film reviewed", "labs drawn", "urine output recorded", "diet as tolerated",
    "plan discussed with team",
)  # fmt: skip
_WORSE = ("overall worsening", "escalating support", "concern for decline", "poor response", "prognosis guarded")
_BETTER = ("overall improving", "weaning support", "resting comfortably", "good response", "transfer planned")


def write_synthetic_mimic(folder: Path, *, stays: int = 600, seed: int = 0) -> None:
    """Write root/, in-hospital-mortality/, phenotyping/, notes/ and start_times.csv into an empty folder.

    Two latent severities are drawn for each stay: the vital signs follow one, the words of the notes the other, and
    death and the phenotypes depend on their sum. So either modality alone tells about half. Notes of the dead after the
    window say LATE; a reader that lets them through is found out. One subject in ten has two stays.
    Subjects are split 70/15/15; nothing in it comes from a real patient.
    """
    writer = _Writer(folder, np.random.default_rng(seed))
    subject = 10_000
    while len(writer.starts) < stays:
        subject += 1
        writer.subject(subject, most=stays - len(writer.starts))
    for task, listed in writer.listed.items():
        for split in ("train", "val", "test"):
            chosen = [
                {key: entry[key] for key in entry if key != "split"} for entry in listed if entry["split"] == split
            ]
            _write_table(folder / task / f"{split}_listfile.csv", chosen, list(listed[0])[:-1])
    _write_table(folder / "start_times.csv", writer.starts, ["stay", "start"])


class _Writer:
    """Writes subjects one after the other; `listed` collects the tasks' listfiles, `starts` the published clock's."""

    def __init__(self, folder: Path, random: np.random.Generator) -> None:
        self.folder, self.random = folder, random
        self.listed: dict[str, list[dict[str, Any]]] = {"in-hospital-mortality": [], "phenotyping": []}
        self.starts: list[dict[str, Any]] = []
        for name in (*(f"{task}/{part}" for task in self.listed for part in ("train", "test")), "notes"):
            (folder / name).mkdir(parents=True)

    def subject(self, subject: int, most: int) -> None:
        split = ("train", "val", "test")[int(np.searchsorted([0.7, 0.85], self.random.random()))]
        part = "test" if split == "test" else "train"
        home = self.folder / "root" / part / str(subject)
        home.mkdir(parents=True)
        intime = _EPOCH + timedelta(minutes=int(self.random.integers(2_000_000)))
        count = min(most, 1 + int(self.random.random() < 0.1))
        starts = [intime + timedelta(days=90 * number) for number in range(count)]
        names = [f"{subject}_{number}" for number in range(1, count + 1)]
        stays = [self._stay(home, part, split, name, start) for name, start in zip(names, starts, strict=True)]
        _write_table(home / "stays.csv", stays[::-1], list(stays[0]))  # the latest first: readers have to sort

    def _stay(self, home: Path, part: str, split: str, name: str, intime: datetime) -> dict[str, Any]:
        """Write the files of one stay; returns its row of stays.csv."""
        subject, number = name.split("_")
        hours = float(self.random.uniform(50, 120))
        severity = self.random.standard_normal(2)  # of the series, of the notes
        dies = bool(self.random.random() < _sigmoid(4 * severity.sum() - 3))
        times, lines = _series(float(severity[0]), hours, self.random)
        whole = "\n".join([_HEADER, *lines, ""])
        start = "\n".join([_HEADER, *lines[: int((times <= 48).sum())], ""])
        file = f"{subject}_episode{number}_timeseries.csv"
        (home / f"episode{number}.csv").write_text(f"Icustay,Age,Mortality\n{subject}{number},60,{int(dies)}\n")
        (home / f"episode{number}_timeseries.csv").write_text(whole)
        (self.folder / "in-hospital-mortality" / part / file).write_text(start)
        (self.folder / "phenotyping" / part / file).write_text(whole)
        notes = _notes(float(severity[1]), hours, intime, dies, self.random)
        (self.folder / "notes" / name).write_text(json.dumps(notes))
        self.listed["in-hospital-mortality"].append({"stay": file, "y_true": int(dies), "split": split})
        phenotypes = _phenotypes(severity, self.random)
        self.listed["phenotyping"].append({"stay": file, "period_length": hours, **phenotypes, "split": split})
        self.starts.append({"stay": name, "start": intime + timedelta(hours=1.1)})
        return {
            "SUBJECT_ID": subject, "ICUSTAY_ID": f"{subject}{number}", "INTIME": intime,
            "OUTTIME": intime + timedelta(hours=hours), "LOS": hours / 24, "MORTALITY_INHOSPITAL": int(dies),
        }  # fmt: skip


def _series(severity: float, hours: float, random: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Times in hours, ascending, and the lines of the file."""
    times = np.sort(random.uniform(0, hours, int(random.integers(20, 90)))).round(4)
    columns = [[f"{time:.4f}" for time in times]]
    for variable in VARIABLES:
        if variable.name in _TEXTS:
            chance, texts = 0.2, random.choice(_TEXTS[variable.name], len(times)).tolist()
        else:
            normal, spread, shift, chance = _BEHAVIOUR[variable.name]
            values = normal + shift * severity + spread * random.standard_normal(len(times))
            texts = [f"{value:.3f}" for value in values]
        observed = random.random(len(times)) < chance
        columns.append([text if there else "" for text, there in zip(texts, observed, strict=True)])
    return times, [",".join(row) for row in zip(*columns, strict=True)]


def _write_table(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _notes(
    severity: float, hours: float, intime: datetime, dies: bool, random: np.random.Generator
) -> dict[str, list[str]]:
    notes = {}
    for hour in np.sort(random.uniform(0.5, 23.5, int(random.integers(2, 6)))):
        sentences = random.choice(_NEUTRAL, 4).tolist()
        for _ in range(3):
            sentences.append(str(random.choice(_WORSE if random.random() < _sigmoid(2 * severity) else _BETTER)))
        notes[str(intime + timedelta(minutes=int(60 * hour)))] = sentences
    if dies:
        notes[str(intime + timedelta(hours=min(hours, 48.5)))] = [LATE]
    return notes


def _phenotypes(severity: np.ndarray, random: np.random.Generator) -> dict[str, int]:
    """Each phenotype weighs the two severities in its own way, the same for every patient."""
    angles = np.pi / 2 * (0.2 + 0.6 * np.arange(len(PHENOTYPES)) / (len(PHENOTYPES) - 1))
    sums = np.cos(angles) * severity[0] + np.sin(angles) * severity[1]
    drawn = random.random(len(PHENOTYPES)) < _sigmoid(5 * sums - 3)
    return dict(zip(PHENOTYPES, drawn.astype(int).tolist(), strict=True))


def _sigmoid(x: float | np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))
