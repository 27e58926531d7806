"""`ift ui`: MLflow's own pages on this machine.

In:  the tracking URI of a spec.
Out: a server on loopback until it is interrupted.
"""

import os
import sys
from pathlib import Path

from ift.errors import IftError
from ift.tracking.client import existing_uri


def serve(uri: str, *, host: str, port: int) -> None:
    """Serve the pages of a local store. Raises `IftError` where there is none yet, or the URI is a server's."""
    if uri.startswith(("http://", "https://")):
        raise IftError(f"{uri} is a server already", hint="open it in a browser")
    uri = existing_uri(uri, Path.cwd())
    print(f"MLflow on http://{host}:{port} (Ctrl-C stops it): Experiments has the runs, Models the registry")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--workers",
        "1",  # one person looks; four take a gibibyte and longer to start
        "--uvicorn-opts",
        "--log-level warning",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
    ]
    sys.stdout.flush()
    os.environ["MLFLOW_LOGGING_LEVEL"] = "WARNING"
    os.execv(sys.executable, command)  # the server takes this process's place: what ends one ends the other
