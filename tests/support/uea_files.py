"""A small data set in .ts files, and where tests write it."""

from pathlib import Path

HEADER = "@classLabel true a b c\n@data\n"
TRAIN = HEADER + "1,2,3:7,?,9:a\n4,5:1,1:b\n2,2:1,3:a\n3,3:1,1:b\n"
TEST = HEADER + "1,2,3,4:1,2,3,4:b\n5:6:a\n"


def write_dataset(folder: Path, name: str = "Toy", train: str | None = TRAIN, test: str | None = TEST) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in (("TRAIN", train), ("TEST", test)):
        if text is not None:
            (folder / f"{name}_{split}.ts").write_text(text)
    return folder
