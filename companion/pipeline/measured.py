"""The telling stages whose numbers are there: `python -m companion.pipeline.measured FILE` names
them for `dvc repro --single-item`, since a study that was never measured has nothing to tell."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo


def telling(file: str, root: Path) -> list[str]:
    """Names such as "studies/dvc.yaml:grids-tell" of the telling stages of a dvc.yaml below the
    repository's root of which every file that they read exists."""
    with Repo(str(root)) as repo:
        return [
            stage.addressing
            for stage in repo.index.stages
            if stage.path_in_repo == file
            and "-tell" in stage.name
            and all(isinstance(d, ParamsDependency) or d.exists for d in stage.deps)
        ]


def main(arguments: Sequence[str]) -> None:
    """Print the names of one file's stages."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.pipeline.measured", description="Which telling stages can run?"
    )
    parser.add_argument("file", help="a dvc.yaml below the current folder")
    file = parser.parse_args(arguments).file
    if not Path(file).is_file():
        parser.error(f"there is no {file}: name a dvc.yaml, such as studies/dvc.yaml")
    print("\n".join(telling(file, Path.cwd())))


if __name__ == "__main__":
    main(sys.argv[1:])
