"""The paper's seven data sets for fine-tuning DiT-XL/2 and the recipe, as facts with their sources
in data/transfer.csv.

Nothing is downloaded: a folder holds a data set as its archive unpacks, `open_dataset` lists and
counts its images, and `as_image_folder` shows them as class folders, the layout that
`nag.data.latents` encodes."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field
from torchvision.datasets import SUN397, Food101, StanfordCars

from nag.data.image_folder import image_folder
from nag.support.commands import refusing
from nag.support.paths import DATA, ROOT

TABLE = DATA / "transfer.csv"
Listing = tuple[list[tuple[Path, int]], list[str]]


class Recipe(BaseModel):
    """DogFit's default recipe (Bahram et al., AAAI 2026) with noise-condition dropout added; an
    unknown name is an error.

    The defaults and the source of each are rows of data/transfer.csv: see `recipe`. Scales count as
    in the literature, 1 is no guidance; `guided_channels` are the first ones of the latent, for CFG
    and Domain Guidance alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrained: str
    class_table: Literal["new", "keep"]
    image_size: int = Field(gt=0, multiple_of=8)
    preparation: str
    vae: str
    latent_scale: float = Field(gt=0)
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    ema_decay: float = Field(ge=0, lt=1)
    class_dropout: float = Field(ge=0, le=1)
    noise_dropout: float = Field(ge=0, le=1)
    samples: int = Field(gt=0)
    sampler: str
    sampling_steps: int = Field(gt=0)
    cfg_scale: float = Field(ge=1)
    dog_scale: float = Field(ge=1)
    dog_null_class: int = Field(ge=0)
    guided_channels: int = Field(gt=0)

    def training(self) -> dict:
        """The part that `nag.train.TrainConfig` takes: constant lr from the first step, and no
        clipping that is ever felt.
        """
        return {
            "images_seen": self.steps * self.batch_size,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "warmup_steps": 0,
            "cooldown": 0.0,
            "weight_decay": self.weight_decay,
            "ema_decay": self.ema_decay,
            "grad_clip": 1e9,
        }


def table() -> pd.DataFrame:
    """All facts, columns subject, fact, value, source, as text; an empty value could not be
    established.
    """
    return pd.read_csv(TABLE, dtype=str, keep_default_na=False)


def facts(subject: str) -> dict[str, str]:
    """{fact: value} of a data set, of "recipe" or of "evaluation", as text; raises ValueError for
    another subject.
    """
    rows = table()
    if subject not in set(rows.subject):
        raise ValueError(
            f"no facts on {subject!r} in {TABLE.name}: choose one of "
            f"{', '.join(rows.subject.unique())}"
        )
    rows = rows[rows.subject == subject]
    return dict(zip(rows.fact, rows.value, strict=True))


def names() -> list[str]:
    """The seven data sets in the order of the paper's table, named as in data/paper_results.csv."""
    return list(LISTERS)


def recipe(**changes) -> Recipe:
    """The recipe of data/transfer.csv with some settings changed; raises ValueError (pydantic's)
    for an unknown or bad one.
    """
    return Recipe(**facts("recipe") | changes)


def _food101(folder: Path) -> Listing:
    parts = [Food101(folder, split) for split in ("train", "test")]
    return [
        pair for part in parts for pair in zip(part._image_files, part._labels, strict=True)
    ], parts[0].classes


def _sun397(folder: Path) -> Listing:
    data = SUN397(folder)
    return list(zip(data._image_files, data._labels, strict=True)), data.classes


def _caltech101(folder: Path) -> Listing:
    # Not torchvision's class: it makes folders, counts any file as an image and fails where the
    # background class was removed.
    root = folder / "caltech101/101_ObjectCategories"
    data = image_folder(root, leave_out=["BACKGROUND_Google"])
    return list(zip(data.files, data.labels, strict=True)), data.classes


def _cub200(folder: Path) -> Listing:
    root = folder / "CUB_200_2011"

    def column(name: str) -> pd.Series:
        return pd.read_csv(root / name, sep=" ", header=None, index_col=0)[1]

    files, labels = column("images.txt"), column("image_class_labels.txt")
    chosen = column("train_test_split.txt") == 1
    train = chosen.index[chosen]
    return [(root / "images" / files[i], labels[i] - 1) for i in train], list(column("classes.txt"))


def _stanford_cars(folder: Path) -> Listing:
    data = StanfordCars(folder, "train")
    return data._samples, data.classes


def _df20m_mini(folder: Path) -> Listing:
    rows = pd.read_csv(
        folder / "DF20M-train_metadata_PROD.csv",
        usecols=["image_path", "class_id", "scientificName"],
    )
    species = rows.groupby("class_id").scientificName.first()
    labels = species.index.get_indexer(rows.class_id)
    return [
        (folder / "DF20M" / name, label)
        for name, label in zip(rows.image_path, labels, strict=True)
    ], list(species)


def _artbench10(folder: Path) -> Listing:
    data = image_folder(folder / "artbench-10-imagefolder-split/train")
    return list(zip(data.files, data.labels, strict=True)), data.classes


LISTERS = {
    "food101": _food101,
    "sun397": _sun397,
    "caltech101": _caltech101,
    "cub200": _cub200,
    "stanford_cars": _stanford_cars,
    "df20m_mini": _df20m_mini,
    "artbench10": _artbench10,
}


def open_dataset(name: str, folder: Path) -> Listing:
    """Every image (path, label) that is fine-tuned on, sorted by label and path, and the class
    names, all counted.

    Labels are 0, 1, … in the data set's own order. Raises ValueError for an unknown name, and for a
    folder whose lists cannot be read, whose files are not all there, or whose numbers of classes
    and images are not those of data/transfer.csv; FileNotFoundError with the wanted layout where
    the data set is not there at all."""
    if name not in LISTERS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(LISTERS)}")
    folder, known = Path(folder), facts(name)
    advice = f"wanted is {known['layout']}, from {known['home']}"
    absent = [need for need in known["needs"].split() if not (folder / need).exists()]
    if absent:
        raise FileNotFoundError(
            f"no {known['title']} in {folder} ({absent[0]} is not there): {advice}"
        )
    try:
        samples, classes = LISTERS[name](folder)
        samples = sorted(
            ((Path(path), int(label)) for path, label in samples),
            key=lambda sample: (sample[1], sample[0]),
        )
    except Exception as error:  # whatever a damaged list makes its parser raise
        raise ValueError(
            f"{known['title']} in {folder} cannot be listed ({type(error).__name__}: {error}): "
            f"{advice}"
        ) from error
    lost = [path for path, _ in samples if not path.is_file()]
    if lost:
        raise ValueError(
            f"{known['title']} in {folder} lacks {len(lost):,} of {len(samples):,} listed images, "
            "the first of them "
            f"{lost[0]}: {advice}"
        )
    labels = {label for _, label in samples}
    found = {"classes": len(classes), "images": len(samples)}
    expected = {key: int(known[key]) if known[key] else count for key, count in found.items()}
    if found != expected or labels != set(range(len(classes))):
        raise ValueError(
            f"{known['title']} in {folder}: expected {_counts(expected)} ({known['split']}), found "
            f"{_counts(found)}, with images of {len(labels):,} classes: {advice}"
        )
    return samples, classes


def _counts(numbers: dict[str, int]) -> str:
    return f"{numbers['classes']:,} classes and {numbers['images']:,} images"


def class_folders(classes: list[str]) -> list[str]:
    """A folder name for each class: its number, so that sorting keeps the labels, and its name in
    letters a path can hold.
    """
    return [
        f"{label:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name).strip('_')}"
        for label, name in enumerate(classes)
    ]


def as_image_folder(name: str, folder: Path, out: Path) -> Path:
    """Class folders of symbolic links to a data set's images, `out`/class/file; ImageFolder's
    labels are `open_dataset`'s.

    Run again, it adds the links that are missing, turns those that point elsewhere and removes
    those that are too many. Raises ValueError if `out` holds anything but such folders and links
    (nothing is then changed), and what `open_dataset` raises."""
    samples, classes = open_dataset(name, folder)
    out = Path(out)
    folders = [out / sub for sub in class_folders(classes)]
    wanted = {folders[label] / path.name: path.resolve() for path, label in samples}
    if len(wanted) < len(samples):
        raise ValueError(
            f"two images of a class of {name} in {folder} have one name: rename one of each pair "
            "and run again"
        )
    subs = list(out.iterdir()) if out.is_dir() else [out] if out.exists() else []
    foreign = [
        sub
        for sub in subs
        if not re.match(r"\d{4}-", sub.name) or not sub.is_dir() or sub.is_symlink()
    ]
    links = [] if foreign else [link for sub in subs for link in sub.iterdir()]
    foreign += [link for link in links if not link.is_symlink()]
    if foreign:
        raise ValueError(
            f"{foreign[0]} is none of the links made here: choose a new or an empty folder for "
            f"{name}"
        )
    for link in links:
        if wanted.get(link) != link.readlink():
            link.unlink()
    for sub in folders:
        sub.mkdir(parents=True, exist_ok=True)
    for sub in set(subs) - set(folders):
        sub.rmdir()  # ImageFolder refuses a class without images
    for link, target in wanted.items():
        if not link.is_symlink():
            link.symlink_to(target)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Show a data set as class folders: its name, its folder and where the class folders go."""
    parser = argparse.ArgumentParser(
        prog="python -m nag.data.finetuning_sets", description="Link a data set as class folders"
    )
    parser.add_argument("name", choices=LISTERS, metavar="NAME", help=", ".join(LISTERS))
    parser.add_argument("folder", type=Path, help="where the data set is")
    parser.add_argument("out", type=Path, help="where its class folders go")
    given = parser.parse_args(arguments)
    with refusing(parser):
        as_image_folder(given.name, ROOT / given.folder, ROOT / given.out)


if __name__ == "__main__":
    main()
