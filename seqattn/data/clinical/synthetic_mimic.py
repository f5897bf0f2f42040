"""Invented patients in the folders of mimic3-benchmarks, with labels that neither series nor notes tell alone."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

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
# normal value, spread within a patient, shift by the latent severity, chance of being in a row
_BEHAVIOUR = {
    "Capillary refill rate": (0, 0, 0, 0.05), "Diastolic blood pressure": (60, 8, -4, 0.8),
    "Fraction inspired oxygen": (0.4, 0.05, 0, 0.1), "Glascow coma scale total": (13, 1, 0, 0.2),
    "Glucose": (130, 25, 0, 0.2), "Heart Rate": (86, 8, 8, 0.9), "Height": (170, 0, 0, 0.02),
    "Mean blood pressure": (77, 8, -5, 0.8), "Oxygen saturation": (97, 1.5, 0, 0.9), "Respiratory rate": (19, 3, 2, 0.9),
    "Systolic blood pressure": (118, 12, -8, 0.8), "Temperature": (37, 0.4, 0, 0.3), "Weight": (81, 0.5, 0, 0.05),
    "pH": (7.39, 0.04, 0, 0.1),
}  # fmt: skip
_TEXTS = {
    "Glascow coma scale eye opening": ("4 Spontaneously", "Spontaneously", "To Speech", "None"),
    "Glascow coma scale motor response": ("6 Obeys Commands", "Obeys Commands", "Localizes Pain"),
    "Glascow coma scale verbal response": ("5 Oriented", "Oriented", "Confused", "1.0 ET/Trach"),
}
_NEUTRAL = (
    "patient seen on rounds", "lines in place", "family at bedside", "medication given as ordered", "turned every two hours",
    "chest film reviewed", "labs drawn", "urine output recorded", "diet as tolerated", "plan discussed with team",
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
    random = np.random.default_rng(seed)
    lists: dict[str, list[dict]] = {"in-hospital-mortality": [], "phenotyping": []}
    starts, written, subject = [], 0, 10_000
    while written < stays:
        subject += 1
        split = ("train", "val", "test")[int(np.searchsorted([0.7, 0.85], random.random()))]
        episodes = min(1 + int(random.random() < 0.1), stays - written)
        admitted = [_EPOCH + timedelta(minutes=int(random.integers(2_000_000)))]
        if episodes == 2:
            admitted.append(admitted[0] + timedelta(days=90))
        _write_subject(folder, subject, split, admitted, random, lists, starts)
        written += episodes
    for task, entries in lists.items():
        table = pd.DataFrame(entries)
        for split in ("train", "val", "test"):
            chosen = table[table["split"] == split].drop(columns="split")
            chosen.to_csv(folder / task / f"{split}_listfile.csv", index=False)
    pd.DataFrame(starts).to_csv(folder / "start_times.csv", index=False)


def _write_subject(
    folder: Path,
    subject: int,
    split: str,
    admitted: list[datetime],
    random: np.random.Generator,
    lists: dict[str, list[dict]],
    starts: list[dict],
) -> None:
    part = "test" if split == "test" else "train"
    home = folder / "root" / part / str(subject)
    home.mkdir(parents=True)
    for name in (*(f"{task}/{part}" for task in lists), "notes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, intime in enumerate(admitted, 1):
        hours = float(random.uniform(50, 120))
        severity = random.standard_normal(2)  # of the series, of the notes
        dies = bool(random.random() < _sigmoid(4 * severity.sum() - 3))
        name = f"{subject}_episode{number}_timeseries.csv"
        series = _series(float(severity[0]), hours, random)
        series.to_csv(home / f"episode{number}_timeseries.csv", index=False)
        pd.DataFrame([{"Icustay": subject * 10 + number, "Age": 60, "Mortality": int(dies)}]).to_csv(
            home / f"episode{number}.csv", index=False
        )
        series[series["Hours"] <= 48].to_csv(folder / "in-hospital-mortality" / part / name, index=False)
        series.to_csv(folder / "phenotyping" / part / name, index=False)
        notes = _notes(float(severity[1]), hours, intime, dies, random)
        (folder / "notes" / f"{subject}_{number}").write_text(json.dumps(notes, indent=0))
        phenotypes = _phenotypes(severity, random)
        lists["in-hospital-mortality"].append({"stay": name, "y_true": int(dies), "split": split})
        lists["phenotyping"].append({"stay": name, "period_length": hours, **phenotypes, "split": split})
        rows.append({
            "SUBJECT_ID": subject, "ICUSTAY_ID": subject * 10 + number, "INTIME": intime,
            "OUTTIME": intime + timedelta(hours=hours), "LOS": hours / 24, "MORTALITY_INHOSPITAL": int(dies),
        })  # fmt: skip
        starts.append({"stay": f"{subject}_{number}", "start": intime + timedelta(hours=1.1)})
    pd.DataFrame(rows[::-1]).to_csv(home / "stays.csv", index=False)  # the latest first: readers have to sort


def _series(severity: float, hours: float, random: np.random.Generator) -> pd.DataFrame:
    times = np.sort(random.uniform(0, hours, int(random.integers(20, 90))))
    columns: dict[str, object] = {"Hours": np.round(times, 4)}
    for variable in VARIABLES:
        if variable.name in _TEXTS:
            values = random.choice(_TEXTS[variable.name], len(times)).astype(object)
            values[random.random(len(times)) > 0.2] = None
        else:
            normal, spread, shift, chance = _BEHAVIOUR[variable.name]
            values = np.round(normal + shift * severity + spread * random.standard_normal(len(times)), 3)
            values[random.random(len(times)) > chance] = np.nan
        columns[variable.name] = values
    return pd.DataFrame(columns)


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
