"""Train a network: python tools/train.py -c configs/micronet_m0.yaml [-o KEY=VALUE ...]

On several processes: python -m paddle.distributed.launch tools/train.py -c configs/micronet_m0.yaml
"""

from __future__ import annotations

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli


def main() -> int:
    arguments = cli.parser(__doc__.splitlines()[0]).parse_args()
    config = cli.load_config(arguments, needs=["Train"])
    from ppcls_ext.engine import StoppedBySignal, train

    try:
        train(config)
    except StoppedBySignal as stopped:
        return stopped.status
    return 0


if __name__ == "__main__":
    cli.run(main)
