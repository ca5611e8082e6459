"""Score a study's training data under its starting model. Runs as a process of its own.

python -m profit_sft.study.processes LOCK_FILE profit_sft.study.score_data REQUEST_FILE
"""

import json
import sys
from pathlib import Path

from profit_sft.data.settings import DataSettings
from profit_sft.scores.score import score_dataset
from profit_sft.scores.settings import ScoreSettings


def main(request_file: Path) -> None:
    """Do what the request asks for; a store that is there in part is completed."""
    request = json.loads(request_file.read_text(encoding="utf-8"))
    data = DataSettings(**request.pop("data"))
    score_dataset(ScoreSettings(**request | {"data": data, "output_dir": Path(request["output_dir"])}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
