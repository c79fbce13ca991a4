"""The telling stages whose numbers are there: `python -m companion.pipeline.measured FILE` names
them for `dvc repro --single-item`, since a study that was never measured has nothing to tell."""

import sys
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


if __name__ == "__main__":
    print("\n".join(telling(sys.argv[1], Path.cwd())))
