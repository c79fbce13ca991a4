import hashlib
import os
import re
from urllib.error import URLError

import pytest
import torch

from nag.data import published_files
from nag.data.published_files import find, record

CONTENT = b"weights of a network"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A table of three files and empty folders where they are looked for."""
    listed = tmp_path / "files.csv"
    listed.write_text(
        "name,file,bytes,sha256,source,purpose,licence\n"
        f"known,known.pth,{len(CONTENT)},{DIGEST},https://example.org/known.pth,"
        '"a test, of ours",MIT\n'
        f"prefix,prefix.pth,,{DIGEST[:8]},https://example.org/page,a test,MIT\n"
        "free,free.pt,,,https://example.org/page,a test,MIT\n"
    )
    monkeypatch.setattr(published_files, "TABLE", listed)
    monkeypatch.setattr(published_files, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(published_files, "CHECKSUMS", tmp_path / "checksums")
    monkeypatch.setattr(published_files, "SETTLED", -1)  # tests do not wait for files to settle
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for folder in ("weights", "hub/checkpoints", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def counted(monkeypatch):
    calls, real = [], published_files.sha256
    monkeypatch.setattr(published_files, "sha256", lambda path: calls.append(path) or real(path))
    return calls


def test_the_list_holds_only_whole_facts():
    rows = published_files.table()
    assert {
        "inception",
        "dinov2-vit-l-14",
        "reference-256",
        "reference-512",
        "dit-xl-2-256",
        "sit-xl-2-256",
    } <= rows.keys()
    files = [row["file"] for row in rows.values()]
    assert len(set(files)) == len(files)
    for row in rows.values():
        assert (
            row["source"].startswith("https://")
            and row["purpose"]
            and row["licence"]
            and None not in row
        )
        assert re.fullmatch(r"([0-9a-f]{8,64})?", row["sha256"]) and re.fullmatch(
            r"\d*", row["bytes"]
        )
        suffix = re.search(
            r"-([0-9a-f]{8})\.pth$", row["file"]
        )  # torch.hub's custom: the name ends in the hash's start
        assert suffix is None or row["sha256"].startswith(suffix[1])


def test_the_nearest_place_wins(places):
    for folder in ("hub/checkpoints", "weights", "mine"):
        (places / folder / "free.pt").write_bytes(folder.encode())
        assert find("free", places / "mine").read_bytes() == folder.encode()
    assert find("free") == places / "weights" / "free.pt"


def test_a_folder_is_found_as_it_is(places):
    (places / "weights" / "free.pt").mkdir()
    assert find("free") == places / "weights" / "free.pt"


def test_hashed_once_until_the_file_changes(places, monkeypatch):
    calls = counted(monkeypatch)
    for name in ("known", "prefix"):
        path = places / "weights" / f"{name}.pth"
        path.write_bytes(CONTENT)
        assert find(name) == find(name) == path
    assert len(calls) == 2
    path.write_bytes(CONTENT[::-1])  # as long as before
    os.utime(path, ns=(0, 0))
    with pytest.raises(
        ValueError,
        match=f"prefix.pth has the SHA-256 .*not the published {DIGEST[:8]}: fetch it again",
    ):
        find("prefix")
    assert len(calls) == 3


def test_another_content_of_the_same_size_and_time_is_seen(places):
    path = places / "weights" / "free.pt"
    path.write_bytes(CONTENT)
    os.utime(path, ns=(5, 5))
    assert record(path)["sha256"] == DIGEST
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(5, 5))  # as `cp -p` and `rsync -t` do
    assert record(path)["sha256"] == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_files_of_one_name_do_not_forget_each_other(places, monkeypatch):
    calls = counted(monkeypatch)
    for folder in ("weights", "mine", "weights", "mine"):
        if not (places / folder / "free.pt").exists():
            (places / folder / "free.pt").write_bytes(folder.encode())
        found = record(places / folder / "free.pt")["sha256"]
        assert found == hashlib.sha256(folder.encode()).hexdigest()
    assert len(calls) == 2


def test_what_was_written_a_moment_ago_is_read_again(places, monkeypatch):
    monkeypatch.setattr(published_files, "SETTLED", 2 * 10**9)
    calls = counted(monkeypatch)
    (places / "weights" / "free.pt").write_bytes(CONTENT)
    assert record(places / "weights" / "free.pt") == record(places / "weights" / "free.pt")
    assert len(calls) == 2 and not (places / "checksums").exists()


@pytest.mark.parametrize("note", ["", "[]", "{}", "no JSON"])
def test_a_damaged_note_is_replaced(places, note):
    (places / "weights" / "known.pth").write_bytes(CONTENT)
    find("known")
    next((places / "checksums").iterdir()).write_text(note)
    assert find("known") and record(places / "weights" / "known.pth")["sha256"] == DIGEST


def test_a_note_of_a_namesake_does_not_count(places):
    for folder, content in (("weights", CONTENT), ("mine", CONTENT[::-1])):
        (places / folder / "known.pth").write_bytes(content)
        os.utime(places / folder / "known.pth", ns=(0, 0))
    assert find("known")
    with pytest.raises(ValueError, match="mine/known.pth has the SHA-256"):
        find("known", places / "mine")


def test_a_truncated_file_is_told_by_its_size(places, monkeypatch):
    calls = counted(monkeypatch)
    (places / "weights" / "known.pth").write_bytes(CONTENT[:5])
    with pytest.raises(
        ValueError, match=f"has 5 bytes, not the {len(CONTENT)} of the published file"
    ):
        find("known")
    assert not calls


def test_what_is_missing_is_named_in_one_sentence(places):
    with pytest.raises(FileNotFoundError) as error:
        find("known", places / "mine")
    text = str(error.value)
    for part in (
        "known.pth",
        "a test, of ours",
        "https://example.org/known.pth",
        DIGEST,
        str(places / "mine"),
    ):
        assert part in text
    with pytest.raises(FileNotFoundError, match=r"put it into .*weights$") as error:
        find("free")
    assert "SHA" not in str(error.value)
    with pytest.raises(ValueError, match="unknown file 'other': choose one of"):
        find("other")


def test_download_only_of_what_can_be_verified(places, monkeypatch):
    asked = []

    def fetch(url, target, digest, progress):
        asked.append((url, digest))
        with open(target, "wb") as file:
            file.write(CONTENT)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for name in ("prefix", "free"):  # a page, and no hash
        with pytest.raises(FileNotFoundError):
            find(name, download=True)
    with pytest.raises(FileNotFoundError):
        find("known")
    assert find("known", download=True).read_bytes() == CONTENT and asked == [
        ("https://example.org/known.pth", DIGEST)
    ]


@pytest.mark.parametrize("error", [URLError("offline"), RuntimeError("invalid hash value")])
def test_a_failed_download_says_what_to_place(places, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(FileNotFoundError, match="no known.pth.*put it into"):
        find("known", download=True)


def test_record(places):
    path = places / "mine" / "samples.npz"
    with pytest.raises(FileNotFoundError, match="samples.npz: check the path"):
        record(path)
    path.write_bytes(CONTENT)
    assert record(path) == {"file": "samples.npz", "bytes": len(CONTENT), "sha256": DIGEST}
    assert [p.name for p in path.parent.iterdir()] == ["samples.npz"]  # DVC may watch the folder


def test_a_file_under_a_published_name_must_be_that_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    path.write_bytes(b"abc")
    truth = hashlib.sha256(b"abc").hexdigest()
    listed = {
        "net": dict(
            name="net",
            file="net.pt",
            bytes="",
            sha256=truth[:16],
            source="somewhere",
            purpose="",
            licence="",
        )
    }
    monkeypatch.setattr(published_files, "table", lambda: listed)
    monkeypatch.setattr(published_files, "CHECKSUMS", tmp_path / "notes")
    assert published_files.digest(path) == truth and published_files.record(path)["bytes"] == 3
    path.write_bytes(b"abd")
    with pytest.raises(ValueError, match="not the published .* fetch it again from somewhere"):
        published_files.digest(path)
