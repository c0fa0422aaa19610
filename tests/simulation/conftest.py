import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for fmmax_reference, which the benchmarks use, too
