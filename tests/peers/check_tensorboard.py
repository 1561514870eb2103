"""TensorBoard's own reader reads Moesaic's event files, and forgets what a restart did again.

Usage: check_tensorboard.py WRITE_EVENT_FILES_PROGRAM
"""

import pathlib
import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader


def main():
    with tempfile.TemporaryDirectory() as run:
        subprocess.run([sys.argv[1], run], check=True)
        folder = pathlib.Path(run, "tensorboard")
        files = sorted(folder.iterdir())
        assert len(files) == 2, files
        # The loader checks lengths and checksums, and stops where they are wrong.
        records = [len(list(RawEventFileLoader(str(file)).Load())) for file in files]
        assert records == [6, 6], records

        events = EventAccumulator(str(folder))
        events.Reload()
        scalars = [(event.step, event.value) for event in events.Scalars("loss/train")]
        expected = [(1, 1.25), (2, 2.25), (3, 3.5), (4, 4.5), (5, 5.5), (6, 6.5)]
        assert scalars == expected, scalars
        zeros = [event.value for event in events.Scalars("loss/auxiliary")]
        assert zeros == [0] * 6, zeros
        assert events.FirstEventTimestamp() > 1.6e9
        print(f"{len(scalars)} steps are read back: {sorted(events.Tags()['scalars'])}")


if __name__ == "__main__":
    main()
