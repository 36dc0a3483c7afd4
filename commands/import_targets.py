"""The command ``import``: targets that another program made."""

from typing import Annotated

import typer

from ..errors import SettingError
from .corpus_options import (
    CaptionColumn,
    CaptionEnding,
    ImageColumn,
    KeyColumn,
    PrefixKeys,
    ShardRows,
    table_columns,
)
from .options import (
    CORPUS,
    TEACHER,
    AsJson,
    CorpusRoot,
    DecodeWorkers,
    Quiet,
    flag,
    given_location,
    option,
    parse_roots,
    path_argument,
    path_option,
    print_found,
    say,
)

_EMBEDDINGS = "Embeddings"


def import_targets(
    source: Annotated[
        str,
        path_argument(
            "SOURCE",
            help="Embeddings: Parquet (key, view, embedding), .npy with keys beside it, .npz, a folder of "
            "clip-retrieval, or tars of DataCompDR. A file, a folder or a pattern in quotes.",
        ),
    ],
    cache: Annotated[
        str,
        path_argument("CACHE", help="Folder or URL of the cache; made from --corpus if missing."),
    ],
    teacher_name: Annotated[
        str, option("NAME", "Name of the teacher in the cache, such as dfn-l14.", TEACHER)
    ],
    corpus: Annotated[
        list[str] | None,
        path_option(
            "SOURCE",
            "Images and captions that the embeddings belong to, as for build. Repeatable.",
            CORPUS,
            default="those of the cache; for DataCompDR the tars",
        ),
    ] = None,
    views: Annotated[
        int | None,
        option(
            "N",
            "In a new cache: views of each image.",
            CORPUS,
            default="1; of DataCompDR its crops and the whole image",
        ),
    ] = None,
    embedding_key: Annotated[
        str | None,
        option("COLUMN", "Column of the keys.", _EMBEDDINGS, default="by its usual names"),
    ] = None,
    embedding_column: Annotated[
        str | None,
        option(
            "COLUMN", "Column of the images' vectors.", _EMBEDDINGS, default="by its usual names"
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        option("COLUMN", "Column of the texts.", _EMBEDDINGS, default="text or caption"),
    ] = None,
    text_embedding_column: Annotated[
        str | None,
        option(
            "COLUMN", "Column of the texts' vectors.", _EMBEDDINGS, default="by its usual names"
        ),
    ] = None,
    logit_scale: Annotated[
        float | None,
        option(
            "LOGARITHM",
            "Parameter of the model: 4.6052 multiplies cosines by 100.",
            TEACHER,
            default="fitted to own against other pairs",
        ),
    ] = None,
    logit_bias: Annotated[
        float | None,
        option("NUMBER", "Parameter of the model.", TEACHER, default="fitted"),
    ] = None,
    retry_rejected: Annotated[
        bool, flag("--retry-rejected", "Try the rejected rows once more.")
    ] = False,
    image_column: ImageColumn = None,
    caption_column: CaptionColumn = None,
    key_column: KeyColumn = None,
    caption_ending: CaptionEnding = None,
    prefix_keys: PrefixKeys = False,
    corpus_root: CorpusRoot = None,
    shard_rows: ShardRows = None,
    decode_workers: DecodeWorkers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write embeddings that another program made into a cache, joined by key, as a teacher.

    Run the same command again to resume after a crash. Images and texts without an embedding have no target
    and are listed by info --rejected.
    """
    from ..precompute.executor.messages import BuildInterrupted
    from ..precompute.executor.progress import BuildProgress
    from ..precompute.importing.config import EmbeddingColumns, ImportConfig
    from ..precompute.importing.run import import_targets as run_import
    from ..precompute.importing.summary import import_lines, import_numbers
    from ..precompute.planning.config import PlanConfig
    from ..progress import make_display

    columns = table_columns(image_column, caption_column, key_column)
    if not corpus and (columns or caption_ending or prefix_keys):
        raise SettingError(
            "--image-column, --caption-column, --key-column, --caption-ending and --prefix-keys "
            "go with --corpus; columns of embeddings are named with --embedding-key"
        )
    roots = parse_roots(corpus_root)
    plan = None
    if corpus:
        plan = PlanConfig(
            sources=tuple(corpus),
            columns=columns,
            caption_endings=tuple(caption_ending) if caption_ending else None,
            prefix_keys=prefix_keys,
            shard_rows=shard_rows,
            corpus_roots=roots,
        )
    config = ImportConfig(
        source=given_location(source),
        cache=given_location(cache),
        teacher_name=teacher_name,
        plan=plan,
        num_views=views,
        columns=EmbeddingColumns(
            key=embedding_key,
            embedding=embedding_column,
            text=text_column,
            text_embedding=text_embedding_column,
        ),
        shard_rows=shard_rows,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        corpus_roots=roots,
        decode_workers=decode_workers,
        retry_rejected=retry_rejected,
    )
    try:
        summary = run_import(config, progress=BuildProgress(make_display(is_quiet=quiet)))
    except (BuildInterrupted, KeyboardInterrupt) as error:
        say(str(error) or str(BuildInterrupted()), err=True)
        raise typer.Exit(130) from None
    print_found(import_numbers(summary), import_lines(config, summary), as_json)
