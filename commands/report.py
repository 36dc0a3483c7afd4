"""The command ``report``: one page about a cache, or about a training and its cache."""

from pathlib import Path
from typing import Annotated, cast

from .options import (
    CORPUS,
    HARDWARE,
    OUTPUT,
    AsJson,
    CorpusRoot,
    DecodeWorkers,
    Device,
    Quiet,
    given_location,
    local_path_option,
    option,
    parse_roots,
    path_argument,
    path_option,
    print_json,
    say,
)
from .search import Open, check_page, open_page


def report(
    place: Annotated[
        str, path_argument("RUN|CACHE", help="Folder of a training, or folder or URL of a cache.")
    ],
    cache: Annotated[
        str | None,
        path_option(
            "CACHE",
            "For a run: the cache to describe and to evaluate on, such as one of held-out images.",
            CORPUS,
            default="the one it was trained on",
        ),
    ] = None,
    split: Annotated[
        str, option("val|train|all", "For a run: images that the student is evaluated on.", CORPUS)
    ] = "val",
    teacher: Annotated[
        str | None, option("NAME", "Teacher in the cache.", default="those of the run, or all")
    ] = None,
    samples: Annotated[
        int,
        option(
            "N",
            "Most images of the map, the probabilities, the near duplicates and the evaluation; a random "
            "choice of more.",
        ),
    ] = 2000,
    examples: Annotated[int, option("N", "Most rows of pictures in each part.")] = 8,
    seed: Annotated[int, option("N", "Random seed.")] = 0,
    corpus_root: CorpusRoot = None,
    device: Device = "auto",
    batch_size: Annotated[
        int, option("N", "Images, and texts, in one forward pass.", HARDWARE)
    ] = 32,
    decode_workers: DecodeWorkers = None,
    html: Annotated[
        Path | None, local_path_option("FILE", "Also write one HTML page.", OUTPUT)
    ] = None,
    is_opened: Open = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Report on a cache, or on a training: the corpus, the teacher, the curves, the figures, the failures.

    The page is one file with pictures and charts, and makes no network requests.
    """
    check_page(html, is_opened=is_opened)
    from ..progress import TaskProgress, make_display
    from ..report.config import FullReportConfig
    from ..report.report import find_run, make_report
    from ..report.section import section_lines
    from ..student.evaluation.eval_set import Split

    run = find_run(place)
    if run is None and cache is not None:
        from ..errors import SettingError

        raise SettingError(f"--cache goes with the folder of a training, and {place} is not one")
    named = cache if run is not None else place
    config = FullReportConfig(
        cache=None if named is None else given_location(named),
        run=run,
        teacher=teacher,
        samples=samples,
        examples=examples,
        split=cast("Split", split),  # the config refuses other words
        seed=seed,
        device=device,
        batch_size=batch_size,
        decode_workers=decode_workers,
        corpus_roots=parse_roots(corpus_root),
    )
    found = make_report(config, progress=TaskProgress(make_display(is_quiet=quiet)))
    if as_json:
        print_json(found.values())
    else:
        for section in found.sections:
            for line in section_lines(section):
                say(line)
            say("")
    lines = [f"note       {note}" for note in found.notes]
    if html is not None:
        from ..report.page import write_report

        missing = write_report(found, html)
        lines += [f"page       {html}", *(f"note       {note}" for note in missing)]
    if not as_json:
        for line in lines:
            say(line)
    if html is not None and is_opened:
        open_page(html)
