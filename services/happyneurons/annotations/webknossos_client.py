"""Calls of a WEBKNOSSOS server, by its own client: run as a script by the Python of an environment that has it.

The package webknossos is AGPL-3 and needs other versions than ours, so it is never imported by the rest.
The token comes in the environment (WK_TOKEN), never as an argument. The last line printed is the answer.
"""

import os
import sys


def main(arguments: list[str]) -> int:
    import webknossos  # type: ignore[import-not-found,unused-ignore]

    what, server, *names = arguments
    with webknossos.webknossos_context(url=server, token=os.environ["WK_TOKEN"]):
        if what == "upload":
            folder, name = names
            remote = webknossos.Dataset.open(folder).upload(new_dataset_name=name)
            print(remote.url)
        elif what == "download":
            annotation, target = names
            webknossos.Annotation.download(annotation).save(target)
            print(target)
        else:
            return 2
    return 0


if __name__ == "__main__":  # its client starts processes: they must not run this again
    sys.exit(main(sys.argv[1:]))
