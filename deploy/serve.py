"""Serve an exported model over HTTP: python deploy/serve.py inference"""

from __future__ import annotations

import argparse

import package  # noqa: F401 - first: it finds ppcls_ext

from ppcls_ext import cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines too (default: this one alone)")
    parser.add_argument("--port", type=cli.port, default=8000, help="0: one that is free (default: 8000)")
    parser.add_argument("--max-megabytes", type=cli.positive, default=20, help="longer files are refused (default: 20)")
    arguments = parser.parse_args()
    from ppcls_ext.serving.http import application, bind, serve

    bound = bind(arguments.host, arguments.port)
    served = cli.load_model(arguments)
    app = application(served, arguments.topk or served.topk, arguments.max_megabytes * 10**6)
    bound.listen()  # who asks as soon as this is said waits for the server
    print(f"{served.folder} at http://{arguments.host}:{bound.getsockname()[1]}; Ctrl-C ends it", flush=True)
    serve(app, bound)


if __name__ == "__main__":
    cli.run(main)
