"""Outputs behind links, refused before a stage runs instead of after its work.

DVC keeps no output whose folder leads out of the repository: at the end of the stage it says
"outside of git repository", and the next run starts over. Outputs that it does not keep
(`cache: false`) and dependencies may lie behind links.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import yaml


def _kept(pipeline: Path) -> Iterator[tuple[str, Path]]:
    """Stage and folder of every output that DVC keeps; a folder ends before its first variable."""
    for name, entry in yaml.safe_load(pipeline.read_bytes())["stages"].items():
        stage = entry.get("do", entry)
        base = pipeline.parent / stage.get("wdir", ".")
        for out in stage.get("outs", []):
            path, options = (out, {}) if isinstance(out, str) else next(iter(out.items()))
            if (options or {}).get("cache", True):
                yield name, (base / f"{path.split('${')[0]}_").parent


def refused(root: Path, pipeline: Path, stage: str = "") -> str:
    """Which folder of a pipeline's outputs leads out of the repository at `root`, and what to do
    about it, in a sentence; "" if none does. `stage` is the name of the only one to look at.
    """
    inside = os.path.realpath(root)
    for name, folder in _kept(pipeline):
        if stage and name != stage:
            continue
        found = os.path.realpath(folder)
        if os.path.commonpath([inside, found]) != inside:
            link = next(f for f in (folder, *folder.parents) if f.is_symlink())
            link = Path(os.path.abspath(link))
            return (
                f"{link} is a link to {os.path.realpath(link)}, outside of the repository, where "
                f"DVC would not keep the output of stage {name}, after all its work: remove the "
                f"link, and clone the repository onto that disk or mount it there "
                f"(mount --bind {os.path.realpath(link)} {link})"
            )
    return ""


def refused_now(root: Path) -> str:
    """`refused` of the stage that DVC is running, named in DVC_STAGE; "" outside of DVC."""
    file, _, name = os.environ.get("DVC_STAGE", "").rpartition(":")
    pipeline = root / (file or "dvc.yaml")
    return refused(root, pipeline, name.partition("@")[0]) if name and pipeline.is_file() else ""
