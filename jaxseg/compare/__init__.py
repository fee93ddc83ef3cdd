"""Runs beside each other: a table as Markdown and CSV, and a report to open in a browser.

`python -m jaxseg.compare RUN... --output=DIR`. `runs` reads workdirs and gathers seeds; `tables` makes Markdown and CSV
of them, `charts` the curves, `pictures` the images through every network, `sections` and `page` the report; `reproduce`
writes the table of published experiments.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

from jaxseg.errors import UserError
from jaxseg.files import replacing
from jaxseg.streams import print_line

IMAGES = 6


def compare(
    workdirs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    images: int = IMAGES,
    log: Callable[[str], object] = print_line,
) -> None:
    """Writes `table.md`, `table.csv` and `report.html`, which needs no file beside it, of finished or running runs.

    Args:
      workdirs: of `jaxseg.main`; one that can't be read or has no results is named and left out.
      output: the folder; made where it is missing. The three files appear together, once all is done.
      images: how many images of the evaluation split are shown through every network, half of them the best, half the
        worst; 0 for none.
      log: is called with each line of text.

    Raises:
      UserError: no run can be compared, or `output` can't be written.
    """
    from jaxseg.compare import page, pictures, runs, tables

    found, notes = runs.read_runs(workdirs)
    groups = runs.group(found)
    rows = runs.rows(groups)
    notes = [*notes, *runs.warnings(groups), *runs.missed(rows)]
    for note in notes:
        log(note)
    sheets, left_out = pictures.sheets(groups, images, log) if images else ([], [])
    for note in left_out:
        log(note)
    notes += left_out
    texts = {
        "table.md": tables.markdown(rows, notes),
        "table.csv": tables.as_csv(rows),
        "report.html": page.page(groups, rows, sheets, notes),
    }
    write(pathlib.Path(output), texts)
    what = f"{tables.counted(len(found), 'run')} of {tables.counted(len(groups), 'config')}"
    log(f"{what}: {', '.join(texts)} in {output}")


def write_reproduction(
    workdirs: Sequence[str | os.PathLike], file: str, *, log: Callable[[str], object] = print_line
) -> None:
    """Writes the table of published experiments, `configs/reproduce/README.md`, from runs of the configs beside it.

    A config says by its group `published` what was published: `scores`, name to figure, those by the project's own
    definition as `published/NAME`, and what they are of in words, `setting`. Where they are of one split, `split` says
    so; `data` is a remark on the data of the run. Which config a run is of is told by `config`, `NAME` or
    `NAME:ARGUMENT`, or else by its workdir, which `jaxseg.main` calls after it.

    Raises:
      UserError: no run can be read, or `file` can't be written.
    """
    from jaxseg.compare import reproduce, runs, tables

    found, notes = runs.read_runs(workdirs)
    for note in notes:
        log(note)
    path = pathlib.Path(file)
    write(path.parent, {path.name: reproduce.readme(runs.rows(runs.group(found)), file)})
    log(f"{tables.counted(len(found), 'run')} in {file}")


def write(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
    """Writes all files of a folder, or none of them.

    Raises:
      UserError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            for name, text in texts.items():
                files.enter_context(replacing(folder / name)).write_text(
                    text, encoding="utf-8", errors="backslashreplace"
                )
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror or error}): choose another folder") from error
