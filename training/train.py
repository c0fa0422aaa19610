"""Train or retrain the surrogate offline.

python training/train.py --config training/configs/field.yaml [--trainer.max_epochs 100 ...] [--ckpt_path RUN/last.ckpt]
"""

from metaspec_training.cli import fit

if __name__ == "__main__":
    fit()
