"""The command `nag`: `nag diagnose PIPELINE --images FOLDER` measures a model's noise shift."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from nag.support.commands import any_terminal

LARGEST = 2**62 + 1  # of the first seed, so that those of all images are below 2^63


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def _several(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(
            f"{text} must be a whole number of at least 2, since the interval is over images"
        )
    return int(text)


def _finite(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return found


def _report(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file: name a folder for the report")
    return path


def _seed(text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= LARGEST:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from 0 to 2^62")
    return int(text)


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"no folder at {text}")
    return path


def _lines(text: str) -> list[str]:
    try:
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text} is not UTF-8: save it as UTF-8") from error
    return [line for line in lines if line.strip()]


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    top = argparse.ArgumentParser("nag", description="Noise Awareness Guidance for your own model.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    add = verbs.add_parser(
        "diagnose",
        help="measure the noise shift of a diffusers pipeline and write a page with the curve",
    ).add_argument
    add("pipeline", help="a folder written by save_pretrained, or a name on the Hub")
    add("--images", type=_folder, required=True, help="real images like the training data")
    add(
        "--out", type=_report, default=Path("nag-report"), help="folder of the report (%(default)s)"
    )
    add("--n", type=_several, default=200, help="sampled images (%(default)s)")
    add("--steps", type=_positive, default=50, help="steps of the scheduler (%(default)s)")
    add("--batch", type=_positive, default=16, help="images sampled at once (%(default)s)")
    add("--size", type=_positive, help="of the images in pixels (the pipeline's own)")
    add("--prompts", type=_lines, default=[], help="a file with one prompt a line")
    add("--guidance-scale", type=_finite, help="the pipeline's own by default")
    add("--images-seen", type=_positive, default=400_000, help="of the estimator (%(default)s)")
    add("--seed", type=_seed, default=0, help="of the first image (%(default)s)")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all went well, 1 with one line if not, 2 for wrong arguments."""
    any_terminal()
    given = parser().parse_args(arguments)
    try:
        from nag.integrations.report import write_report

        found = write_report(
            given.pipeline,
            given.images,
            given.out,
            n=given.n,
            steps=given.steps,
            batch=given.batch,
            images_seen=given.images_seen,
            prompts=given.prompts,
            scale=given.guidance_scale,
            seed=given.seed,
            size=given.size,
        )
    except ImportError as error:
        print(f"nag: {error}: pip install diffusers matplotlib", file=sys.stderr)
        return 1
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"nag: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(found.summary())
    print(f"Written: {given.out / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
