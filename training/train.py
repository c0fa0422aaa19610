"""Train or retrain the surrogate offline, as `metaspec-train fit` does; resume with --ckpt_path RUN/checkpoints/last.ckpt.

python training/train.py --config training/configs/field.yaml [--trainer.max_epochs 100 ...]
"""

import sys

from metaspec_training.cli import main

if __name__ == "__main__":
    main(["fit", *sys.argv[1:]])
