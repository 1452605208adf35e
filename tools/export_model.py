"""Export a network: python tools/export_model.py -c CONFIG -o Global.pretrained_model=output/MicroNet_M0/best_model"""

from __future__ import annotations

import checkout  # noqa: F401 - before all that may be missing

from ppcls_ext import cli


def main() -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--no-onednn", action="store_true", help="do not try whether oneDNN may serve the model")
    parser.add_argument("--onnx", action="store_true", help="write inference.onnx for ONNX Runtime as well")
    arguments = parser.parse_args()
    config = cli.load_config(arguments, needs=[])
    from ppcls_ext.export import export

    done = export(config, probe=not arguments.no_onednn, onnx=arguments.onnx)
    print(done.loaded)
    if done.merged is not None:
        print(f"merged parallel branches: {done.merged} tensors are left; compared with the network before merging")
    print(
        f"compared on {len(done.compared)} images, largest difference of probabilities {done.largest_difference:.3g}:"
    )
    for file in done.compared:
        print(f"  {file}")
    if done.onednn["enabled"]:
        found = done.onednn
        print(f"served with oneDNN ({found['operators']}): its largest difference is {found['largest_difference']:.3g}")
    else:
        print(f"served without oneDNN: {done.onednn['reason']}")
    if done.onnx:
        found = done.onnx
        print(f"ONNX Runtime {found['onnxruntime']}: its largest difference is {found['largest_difference']:.3g}")
    print(f"exported to {done.folder}")
    return 0


if __name__ == "__main__":
    cli.run(main)
