"""The command: `python -m jaxseg.compare RUN... --output=DIR`."""

import pathlib
import sys

from jaxseg import checksums
from jaxseg.compare import IMAGES, compare, write_reproduction
from jaxseg.errors import Parser
from jaxseg.streams import keep_streams

# Configs of a checkout import each other as `configs.default`, from wherever the command is given.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))


def main() -> None:
    """Parses the arguments and compares; a mistake of the user's ends in one message and status 1."""
    keep_streams()
    parser = Parser(
        "python -m jaxseg.compare",
        description="Finished or running runs beside each other: table.md, table.csv and report.html, which opens in "
        "any browser without a network. Seeds of one config are gathered to mean and spread.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a --workdir of jaxseg.main")
    parser.add_argument("--output", metavar="DIR", help="the folder for the three files")
    parser.add_argument(
        "--images",
        type=int,
        default=IMAGES,
        metavar="N",
        help=f"images to show through every network, the best and the worst of the split ({IMAGES}); 0: none",
    )
    parser.add_argument(
        "--reproduce",
        metavar="FILE",
        help="write the table of published experiments there: configs/reproduce/README.md",
    )
    parser.add_argument("--accept_edited", action="store_true", help=checksums.ACCEPT_EDITED)
    args = parser.parse_args()
    if not (args.output or args.reproduce):
        parser.error("where to? --output=DIR is missing")
    if args.images < 0:
        parser.error(f"--images is {args.images}: it must be 0 or more")
    from jaxseg.environment import check_environment
    from jaxseg.process import one_line_errors, use_compile_cache

    with one_line_errors(), checksums.accepting_edited(args.accept_edited):
        check_environment()
        use_compile_cache()
        if args.output:
            compare(args.runs, args.output, images=args.images)
        if args.reproduce:
            write_reproduction(args.runs, args.reproduce)


if __name__ == "__main__":
    main()
