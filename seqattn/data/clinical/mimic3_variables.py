"""The 17 variables of mimic3-benchmarks, in the order of their columns.

Ranges are the valid ones of its variable_ranges.csv, which the benchmark itself does not apply. Each category has two
spellings, one of each of the hospital's two systems; their numbers are those of the benchmark.
"""

from seqattn.data.clinical.schema import Variable

_EYE = {
    "None": 0, "No Response": 1, "1 No Response": 1, "To Pain": 2, "2 To pain": 2, "To Speech": 3, "3 To speech": 3,
    "Spontaneously": 4, "4 Spontaneously": 4,
}  # fmt: skip
_MOTOR = {
    "No response": 1, "1 No Response": 1, "Abnormal extension": 2, "2 Abnorm extensn": 2, "Abnormal Flexion": 3,
    "3 Abnorm flexion": 3, "Flex-withdraws": 4, "4 Flex-withdraws": 4, "Localizes Pain": 5, "5 Localizes Pain": 5,
    "Obeys Commands": 6, "6 Obeys Commands": 6,
}  # fmt: skip
_VERBAL = {
    "No Response-ETT": 1, "No Response": 1, "1 No Response": 1, "1.0 ET/Trach": 1, "Incomprehensible sounds": 2,
    "2 Incomp sounds": 2, "Inappropriate Words": 3, "3 Inapprop words": 3, "Confused": 4, "4 Confused": 4,
    "Oriented": 5, "5 Oriented": 5,
}  # fmt: skip

VARIABLES = (
    Variable("Capillary refill rate", low=0, high=1),
    Variable("Diastolic blood pressure", low=0, high=375),
    Variable("Fraction inspired oxygen", low=0.21, high=1),
    Variable("Glascow coma scale eye opening", "category", low=0, high=4, categories=_EYE),
    Variable("Glascow coma scale motor response", "category", low=1, high=6, categories=_MOTOR),
    Variable("Glascow coma scale total", low=3, high=15),
    Variable("Glascow coma scale verbal response", "category", low=1, high=5, categories=_VERBAL),
    Variable("Glucose", low=33, high=2000),
    Variable("Heart Rate", low=0, high=350),
    Variable("Height", low=0, high=240),
    Variable("Mean blood pressure", low=14, high=330),
    Variable("Oxygen saturation", low=0, high=100),
    Variable("Respiratory rate", low=0, high=300),
    Variable("Systolic blood pressure", low=0, high=375),
    Variable("Temperature", low=26, high=45),
    Variable("Weight", low=0, high=250),
    Variable("pH", low=6.3, high=8.4),
)
