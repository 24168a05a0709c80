"""A connection to Ray: a quiet one of our own on this machine, or a cluster that runs already."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from raylg.cluster.resources import Resources, check_fits, joins_cluster
from raylg.errors import EnvironmentUnfitError
from raylg.training.config import ScaleConfig

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 256 * 2**20
_DRIVER_MEMORY = 256 * 2**20
_LONGEST_TEMP_DIR = 40
"""Characters; Ray appends about 65 for its sockets, and Linux allows 107."""
_WORKER_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 s also delays every report by up to 2 s
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the configuration stay valid
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study directory is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nothing restores Tune's own state
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C leaves at once; the study is resumable at any moment
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output engine prints even when told to be silent
}


class RaySession:
    """Starts or joins Ray for the length of a ``with`` block and ends only what it started.

    A Ray of our own listens on the loopback device only, so it needs no token; it ignores other Rays of the machine,
    and its processes are told its address so that they do too. The dashboard always runs: without it Ray Train cannot
    free the workers of a stopped trial.

    Args:
        scale: what to start, or whom to join.
        log_file: where the messages of Ray's libraries in this process go.

    Raises:
        ConfigError: more workers than the machine has (before anything is started).
        EnvironmentUnfitError: Ray or its dashboard does not start, or the cluster cannot be reached.
    """

    def __init__(self, scale: ScaleConfig, log_file: Path) -> None:
        check_fits(scale)
        self._log_file = log_file
        self._scale = scale
        self._is_ours = not joins_cluster(scale)
        self._environment: dict[str, str | None] = {}
        self._temp_dir: Path | None = None
        self._cluster_enabled = ray_constants.ENABLE_RAY_CLUSTER
        self.dashboard_url = ""
        """Address of the Ray dashboard."""

    def __enter__(self) -> RaySession:
        self._set_environment(_WORKER_ENVIRONMENT)
        try:
            context = self._start() if self._is_ours else self._join()
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            self.__exit__()
            what = "start on this machine" if self._is_ours else f"be reached at {self._address!r}"
            raise EnvironmentUnfitError(f"Ray cannot {what}: {error}") from error
        if not context.dashboard_url:
            self.__exit__()
            raise EnvironmentUnfitError(
                "Ray runs without its dashboard, which frees the workers of stopped trials; install ray[default] and "
                "start the cluster with --include-dashboard=true"
            )
        self._redirect_messages()
        ray_worker._worker_logs_enabled = False  # "a worker died": the study says so itself, and that it goes on
        self.dashboard_url = f"http://{context.dashboard_url}"
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()  # a cluster that we joined keeps running
        ray_constants.ENABLE_RAY_CLUSTER = self._cluster_enabled
        ray_worker._worker_logs_enabled = True
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    @property
    def resources(self) -> Resources:
        """CPU cores and GPUs of the cluster at this moment."""
        found = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return Resources(found.get("CPU", 0.0), found.get("GPU", 0.0))

    @property
    def driver_resources(self) -> dict[str, float]:
        """What the process takes that only waits for a worker group: no CPU, which the workers need.

        Where the cluster offers `trial_driver` (cluster.yaml: on the head), that keeps it off nodes that come and go.
        """
        offered = ray.cluster_resources().get("trial_driver", 0)  # type: ignore[no-untyped-call]
        return {"trial_driver": 1} if offered else {"memory": _DRIVER_MEMORY}

    @property
    def _address(self) -> str:
        return self._scale.address or os.environ.get("RAY_ADDRESS", "auto")

    def _start(self) -> ray_worker.BaseContext:
        port, dashboard_port = _free_ports(2)
        self._set_environment(
            {
                "RAY_AUTH_MODE": "disabled",  # nobody else can reach it, see the next line
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for "this node is 127.0.0.1", on Linux too
                "RAY_GCS_SERVER_PORT": str(port),
                "RAY_ADDRESS": f"{_LOOPBACK}:{port}",
                "RAY_USAGE_STATS_ENABLED": "0",
            }
        )
        ray_constants.ENABLE_RAY_CLUSTER = False  # the switch was read when ray was imported
        base = tempfile.gettempdir()
        self._temp_dir = Path(tempfile.mkdtemp(prefix="raylg-", dir=base if len(base) <= _LONGEST_TEMP_DIR else "/tmp"))
        return ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=True,
            dashboard_host=_LOOPBACK,
            dashboard_port=dashboard_port,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address=_LOOPBACK,
            _temp_dir=str(self._temp_dir),
        )

    def _join(self) -> ray_worker.BaseContext:
        return ray.init(
            address=self._address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": dict(_WORKER_ENVIRONMENT)},
        )

    def _redirect_messages(self) -> None:
        """Send what Ray's libraries would print on this terminal to the log file."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self._log_file, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("ray")
        logger.handlers.clear()
        logger.addHandler(handler)
        logger.propagate = False

    def _set_environment(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            self._environment.setdefault(name, os.environ.get(name))
            os.environ[name] = value


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
