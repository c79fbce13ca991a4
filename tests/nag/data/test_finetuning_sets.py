"""The seven fine-tuning data sets: each in its own layout, listed as torchvision lists it, counted,
linked; the recipe.
"""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat
from torchvision.datasets import Caltech101, ImageFolder, StanfordCars

from nag.data import finetuning_sets
from nag.data.finetuning_sets import (
    as_image_folder,
    class_folders,
    facts,
    names,
    open_dataset,
    recipe,
)
from nag.support import paths
from nag.train import TrainConfig


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def food101(root):
    listed = {
        "train": {"pie": ["pie/9", "pie/10"], "apple_pie": ["apple_pie/3"]},
        "test": {"pie": ["pie/1"], "apple_pie": ["apple_pie/2"]},
    }
    for split, classes in listed.items():
        touch(
            root,
            f"food-101/meta/{split}.json",
            *(f"food-101/images/{f}.jpg" for files in classes.values() for f in files),
        )
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(classes))
    images = "food-101/images/"
    return ["apple_pie", "pie"], {
        f"{images}apple_pie/2.jpg": 0,
        f"{images}apple_pie/3.jpg": 0,
        f"{images}pie/1.jpg": 1,
        f"{images}pie/10.jpg": 1,
        f"{images}pie/9.jpg": 1,
    }


def sun397(root):
    files = {
        "SUN397/a/abbey/sun_b.jpg": 0,
        "SUN397/a/apse/indoor/sun_a.jpg": 1,
        "SUN397/z/zen_garden/sun_a.jpg": 2,
    }
    touch(root, *files, "SUN397/README.txt")
    (root / "SUN397/ClassName.txt").write_text("/a/abbey\n/a/apse/indoor\n/z/zen_garden\n")
    return ["abbey", "apse/indoor", "zen_garden"], files


def caltech101(root):
    base = "caltech101/101_ObjectCategories/"
    files = {
        f"{base}Faces/image_0001.jpg": 0,
        f"{base}Faces/image_0002.jpg": 0,
        f"{base}ant/image_0001.jpg": 1,
    }
    touch(root, *files, f"{base}BACKGROUND_Google/image_0001.jpg")
    return ["Faces", "ant"], files


def cub200(root):
    base, classes = "CUB_200_2011/", ["001.Albatross", "002.Auk"]
    listed = [
        (1, f"{classes[0]}/a_2.jpg", 1, 1),
        (2, f"{classes[0]}/a_1.jpg", 1, 0),
        (3, f"{classes[1]}/b_9.jpg", 2, 1),
    ]
    touch(root, *(f"{base}images/{file}" for _, file, _, _ in listed))
    for name, column in {"images": 1, "image_class_labels": 2, "train_test_split": 3}.items():
        (root / f"{base}{name}.txt").write_text(
            "".join(f"{row[0]} {row[column]}\n" for row in listed)
        )
    (root / f"{base}classes.txt").write_text(
        "".join(f"{i} {name}\n" for i, name in enumerate(classes, 1))
    )
    return classes, {
        f"{base}images/{classes[0]}/a_2.jpg": 0,
        f"{base}images/{classes[1]}/b_9.jpg": 1,
    }


def stanford_cars(root):
    base, classes = (
        "stanford_cars/",
        ["Ram C/V Cargo Van 2012", "Audi 100 Sedan 1994"],
    )  # not in the order of the alphabet
    kind = [
        (field, "O") for field in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    ]
    listed = np.array(
        [(1, 1, 9, 9, 2, "00001.jpg"), (1, 1, 9, 9, 1, "00003.jpg"), (1, 1, 9, 9, 1, "00002.jpg")],
        kind,
    )
    touch(
        root,
        *(f"{base}cars_train/0000{i}.jpg" for i in (1, 2, 3)),
        f"{base}devkit/README.txt",
        f"{base}cars_test/00001.jpg",
    )
    savemat(root / base / "devkit/cars_train_annos.mat", {"annotations": listed})
    savemat(root / base / "devkit/cars_meta.mat", {"class_names": np.array(classes, object)})
    return classes, {
        f"{base}cars_train/00002.jpg": 0,
        f"{base}cars_train/00003.jpg": 0,
        f"{base}cars_train/00001.jpg": 1,
    }


def df20m_mini(root):
    classes = ["Agaricus augustus Fr.", "Mycena pura (Pers.) P. Kumm."]
    rows = pd.DataFrame(
        {
            "image_path": ["2-b.JPG", "2-a.JPG", "1-a.JPG"],
            "class_id": [4, 4, 0],
            "species": ["Mycena pura", None, None],
            "scientificName": [classes[1], classes[1], classes[0]],
        }
    )
    touch(root, *("DF20M/" + path for path in rows.image_path), "DF20M/of-the-test-list.JPG")
    rows.to_csv(root / "DF20M-train_metadata_PROD.csv", index=False)
    return classes, {"DF20M/1-a.JPG": 0, "DF20M/2-a.JPG": 1, "DF20M/2-b.JPG": 1}


def artbench10(root):
    base = "artbench-10-imagefolder-split/"
    files = {
        f"{base}train/baroque/x.jpg": 0,
        f"{base}train/ukiyo_e/a.jpg": 1,
        f"{base}train/ukiyo_e/b.jpg": 1,
    }
    touch(root, *files, f"{base}test/baroque/y.jpg")
    return ["baroque", "ukiyo_e"], files


TREES = {
    tree.__name__: tree
    for tree in (food101, sun397, caltech101, cub200, stanford_cars, df20m_mini, artbench10)
}


@pytest.fixture(params=TREES)
def made(request, tmp_path, monkeypatch):
    """(name, folder, class names, {file: label}) of a miniature of each data set, with its counts
    in the table.
    """
    folder = tmp_path / "data"
    classes, files = TREES[request.param](folder)
    rows = finetuning_sets.table()
    for fact, value in {"classes": len(classes), "images": len(files)}.items():
        rows.loc[(rows.subject == request.param) & (rows.fact == fact), "value"] = str(value)
    rows.to_csv(tmp_path / "transfer.csv", index=False)
    monkeypatch.setattr(finetuning_sets, "TABLE", tmp_path / "transfer.csv")
    return request.param, folder, classes, files


def tree_of(out):
    return {link.relative_to(out).as_posix(): link.readlink() for link in out.glob("*/*")}


def test_every_image_with_its_label_in_a_fixed_order(made):
    name, folder, classes, files = made
    samples, found = open_dataset(name, folder)
    assert found == classes
    assert samples == [
        (folder / file, label) for file, label in files.items()
    ]  # written above by label, then path
    assert open_dataset(name, str(folder)) == (samples, found)


def test_the_torchvision_classes_agree(tmp_path):
    stanford_cars(tmp_path), caltech101(tmp_path)
    samples, classes = finetuning_sets._stanford_cars(tmp_path)
    ours, theirs = finetuning_sets._caltech101(tmp_path), Caltech101(tmp_path)
    assert classes == StanfordCars(tmp_path).classes and len(samples) == len(StanfordCars(tmp_path))
    assert ours[1] == theirs.categories and [label for _, label in ours[0]] == theirs.y


def test_links_have_the_same_labels_in_an_image_folder(made, tmp_path):
    name, folder, classes, files = made
    out = as_image_folder(name, folder, tmp_path / "a" / "out")
    shown = ImageFolder(out)
    assert shown.targets == list(files.values()) and len(shown.classes) == len(classes)
    assert [finetuning_sets.Path(path).readlink() for path, _ in shown.samples] == [
        (folder / file).resolve() for file in files
    ]


def test_a_second_run_mends_the_links(made, tmp_path):
    name, folder, _, files = made
    out = as_image_folder(name, folder, tmp_path / "out")
    whole = tree_of(out)
    first, last = list(whole)[0], list(whole)[-1]
    (out / first).unlink()
    (out / last).unlink()
    (out / last).symlink_to(tmp_path / "elsewhere.jpg")
    (out / "9999-old").mkdir()
    (out / "9999-old" / "x.jpg").symlink_to(tmp_path)
    times = {link: (out / link).lstat().st_mtime_ns for link in whole if link not in (first, last)}
    assert tree_of(as_image_folder(name, folder, out)) == whole and not (out / "9999-old").exists()
    assert times == {
        link: (out / link).lstat().st_mtime_ns for link in times
    }  # what was right was left alone
    assert len(whole) == len(files) and all((folder / file).is_file() for file in files)


def test_a_folder_with_other_things_is_left_alone(made, tmp_path):
    name, folder, _, _ = made
    touch(tmp_path / "out", "0000-mine/photo.jpg")
    with pytest.raises(
        ValueError,
        match=r"photo\.jpg is none of the links made here: choose a new or an empty folder",
    ):
        as_image_folder(name, folder, tmp_path / "out")
    with pytest.raises(ValueError, match="is none of the links made here"):
        as_image_folder(name, folder, folder)
    touch(tmp_path, "file")
    with pytest.raises(ValueError, match="is none of the links made here"):
        as_image_folder(name, folder, tmp_path / "file")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["0000-mine", "photo.jpg"]


def test_nothing_there_says_what_is_wanted_and_makes_nothing(made, tmp_path):
    name, empty = made[0], tmp_path / "empty"
    empty.mkdir()
    layout, home = re.escape(facts(name)["layout"]), re.escape(facts(name)["home"])
    with pytest.raises(
        FileNotFoundError, match=f"no .+ in .+ is not there.: wanted is {layout}, from {home}$"
    ):
        open_dataset(name, empty)
    assert not list(empty.iterdir())


def test_each_needed_file_is_named_when_it_is_missing(made):
    name, folder, _, _ = made
    for need in facts(name)["needs"].split():
        shutil.move(folder / need, folder / "aside")
        with pytest.raises(FileNotFoundError, match=re.escape(f"({need} is not there)")):
            open_dataset(name, folder)
        shutil.move(folder / "aside", folder / need)
    open_dataset(name, folder)


def test_wrong_counts_are_told(made):
    name, folder, classes, files = made
    rows = finetuning_sets.table()
    rows.loc[(rows.subject == name) & (rows.fact == "images"), "value"] = "1234"
    rows.to_csv(finetuning_sets.TABLE, index=False)
    found = f"found {len(classes)} classes and {len(files)} images"
    with pytest.raises(
        ValueError,
        match=f"expected {len(classes)} classes and 1,234 images .+ {found}.+wanted is .+, from",
    ):
        open_dataset(name, folder)
    rows.loc[(rows.subject == name) & (rows.fact == "images"), "value"] = (
        ""  # unknown: only the classes count
    )
    rows.to_csv(finetuning_sets.TABLE, index=False)
    assert len(open_dataset(name, folder)[0]) == len(files)
    rows.loc[(rows.subject == name) & (rows.fact == "classes"), "value"] = "7"
    rows.to_csv(finetuning_sets.TABLE, index=False)
    with pytest.raises(ValueError, match="expected 7 classes"):
        open_dataset(name, folder)


def test_a_lost_image_is_told(made):
    name, folder, _, files = made
    (folder / list(files)[-1]).unlink()
    listed = name not in ("sun397", "caltech101", "artbench10")  # those are what is on the disk
    told = (
        r"lacks 1 of \d listed images, the first of them .*\.(jpg|JPG)"
        if listed
        else "expected .+ found|no images in 1 of its classes, such as ant"
    )
    with pytest.raises(ValueError, match=told):
        open_dataset(name, folder)


@pytest.mark.parametrize(
    "name, file",
    [
        ("food101", "food-101/meta/train.json"),
        ("sun397", "SUN397/ClassName.txt"),
        ("cub200", "CUB_200_2011/images.txt"),
        ("df20m_mini", "DF20M-train_metadata_PROD.csv"),
        ("stanford_cars", "stanford_cars/devkit/cars_train_annos.mat"),
    ],
)
def test_a_damaged_list_is_told_in_one_sentence(tmp_path, name, file):
    TREES[name](tmp_path)
    (tmp_path / file).write_bytes(b"\x00half of a")
    with pytest.raises(ValueError, match="cannot be listed .+: wanted is .+, from"):
        open_dataset(name, tmp_path)


def test_caltech_with_the_background_class_removed(tmp_path):
    caltech101(tmp_path)
    before = finetuning_sets._caltech101(tmp_path)
    shutil.rmtree(tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google")
    assert finetuning_sets._caltech101(tmp_path) == before


def test_class_folders_sort_as_the_labels():
    folders = class_folders(["b/é c", "a", "Ram C/V Van"] + [str(i) for i in range(200)])
    assert (
        folders == sorted(folders) and folders[0] == "0000-b_c" and folders[2] == "0002-Ram_C_V_Van"
    )


def test_unknown_names_are_refused(tmp_path):
    for name in ("imagenet", "recipe"):
        with pytest.raises(
            ValueError, match="unknown data set '.+': choose one of food101, sun397"
        ):
            open_dataset(name, tmp_path)
    with pytest.raises(
        ValueError, match="no facts on 'food' in transfer.csv: choose one of food101"
    ):
        facts("food")


def test_the_table_has_a_source_for_every_fact_and_the_papers_sets():
    rows = finetuning_sets.table()
    assert (rows.source.str.len() > 0).all() and not rows.duplicated(["subject", "fact"]).any()
    paper = pd.read_csv(paths.DATA / "paper_results.csv")
    assert names() == list(paper[paper.table == "finetuning"].dataset.unique())
    assert list(rows.subject.unique()) == [*names(), "recipe", "evaluation"]
    counts = {name: (facts(name)["classes"], facts(name)["images"]) for name in names()}
    assert counts["food101"] == ("101", str(101 * (750 + 250))) and counts["artbench10"] == (
        "10",
        str(10 * 5000),
    )
    assert counts["stanford_cars"] == ("196", str(16185 - 8041)) and counts["cub200"] == (
        "200",
        str(11788 - 5794),
    )


def test_the_recipe_is_dogfits_with_noise_dropout_as_ours():
    ours = recipe()
    assert (ours.steps, ours.batch_size, ours.lr, ours.samples, ours.sampling_steps) == (
        24000,
        32,
        1e-4,
        10000,
        50,
    )
    assert (ours.cfg_scale, ours.dog_scale, ours.class_dropout, ours.ema_decay) == (
        1.5,
        1.5,
        0.1,
        0.9999,
    )
    rows = finetuning_sets.table()
    assert list(rows[rows.source.str.startswith("ours")].fact) == ["noise_dropout"]
    config = TrainConfig(**ours.training())
    assert (
        config.steps == ours.steps
        and config.lr == ours.lr
        and config.cooldown == config.warmup_steps == 0
    )
    assert recipe(steps=3, sampling_steps=250).training()["images_seen"] == 96
    for wrong in ({"stpes": 3}, {"lr": 0}, {"image_size": 250}):
        with pytest.raises(ValueError):
            recipe(**wrong)
